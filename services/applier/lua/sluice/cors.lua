-- CORS headers and the preflight answer (behaviours: CORS).
local cjson = require("cjson.safe")

local _M = {}

local parsed = setmetatable({}, { __mode = "v" })

function _M.parse(text)
  local c = parsed[text]
  if not c then
    c = cjson.decode(text)
    parsed[text] = c
  end
  return c
end

-- The Access-Control-Allow-Origin value; nil: the origin does not match.
local function origin_of(c)
  if c.any_origin then
    return "*"
  end
  local origin = ngx.var.http_origin
  for _, pattern in ipairs(origin and c.origins or {}) do
    if ngx.re.find(origin, pattern, "ijo") then
      return origin
    end
  end
  return nil
end

-- Sets the headers; whether the origin matches.
function _M.apply(c)
  local origin = origin_of(c)
  if not origin then
    return false
  end
  local header = ngx.header
  header["Access-Control-Allow-Origin"] = origin
  if c.credentials ~= false then
    header["Access-Control-Allow-Credentials"] = "true"
  end
  header["Access-Control-Allow-Methods"] = c.methods
  header["Access-Control-Allow-Headers"] = c.headers
  if c.expose then
    header["Access-Control-Expose-Headers"] = c.expose
  end
  header["Access-Control-Max-Age"] = tostring(c.max_age or 1728000)
  return true
end

-- Answers a preflight request of a matching origin; returns otherwise.
function _M.preflight(c)
  if ngx.req.get_method() == "OPTIONS" and _M.apply(c) then
    ngx.header["Content-Type"] = "text/plain charset=UTF-8"
    ngx.header["Content-Length"] = "0"
    return ngx.exit(ngx.HTTP_NO_CONTENT)
  end
end

return _M
