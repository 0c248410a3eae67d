-- External authentication: the subrequest to the auth service, and what its answer does to the request (behaviours §8).
local cjson = require("cjson.safe")
local rows = require("sluice.rows")
local template = require("sluice.template")

local MAX_TRIES = 3

local _M = {}

local parsed = setmetatable({}, { __mode = "v" })

local function of_request()
  local text = ngx.var.sluice_auth
  local a = parsed[text]
  if not a then
    a = cjson.decode(text) or {}
    parsed[text] = a
  end
  return a
end

-- The rewrite phase of the subrequest. An URL that cannot be used ends it with 500: never open.
function _M.prepare()
  local var = ngx.var
  local a = of_request()
  local url = template.expand(a.url or "")
  local scheme, authority, path = url:match("^(https?)://([^/?#]+)([^#]*)")
  if not scheme or authority:find("@", 1, true) or url:find("[%c ]") then
    ngx.log(ngx.WARN, "auth-url cannot be used")
    return ngx.exit(500)
  end
  local host, port = authority:match("^(%[[%x:.]+%])"), authority:match(":(%d+)$")
  host = host or authority:match("^([^:]+)")
  if path:sub(1, 1) ~= "/" then
    path = "/" .. path
  end
  var.sluice_auth_host = host
  var.sluice_auth_port = port or (scheme == "https" and "443" or "80")
  var.sluice_auth_target = (scheme == "https" and "https://sluice_auths" or "http://sluice_auth") .. path
  var.sluice_auth_backend = a.backend or ""
  var.sluice_auth_redirect = a.request_redirect and template.expand(a.request_redirect) or var.request_uri
  if a.method then
    var.sluice_auth_method = a.method
    var.sluice_auth_uri = var.request_uri
    var.sluice_auth_scheme = var.pass_access_scheme
  end
end

local function addresses(host)
  local literal = host:match("^%[(.+)%]$") or (host:find("^[%d.]+$") and host)
  return literal and { literal } or rows.resolved(host) or {}
end

local next_address = math.random(0, 1023)

-- An endpoint that is not there is no answer of the auth service: another one is asked.
local function more_tries(balancer, count)
  if count > 1 and not balancer.get_last_failure() then
    balancer.set_more_tries(math.min(count, MAX_TRIES) - 1)
  end
end

-- The balancer phase of the subrequest.
function _M.balance()
  local balancer = require("ngx.balancer")
  local var = ngx.var
  local backend = var.sluice_auth_backend ~= "" and rows.backend_of_request(var.sluice_auth_backend)
  if backend and #backend.endpoints > 0 then
    more_tries(balancer, #backend.endpoints)
    backend.next = backend.next % #backend.endpoints + 1
    local e = backend.endpoints[backend.next]
    return balancer.set_current_peer(e[1], e[2])
  end
  local list = addresses(var.sluice_auth_host)
  if #list == 0 then
    ngx.log(ngx.WARN, "the auth service's name is not resolved")
    return ngx.exit(500)
  end
  more_tries(balancer, #list)
  next_address = next_address % #list + 1
  return balancer.set_current_peer(list[next_address], tonumber(var.sluice_auth_port))
end

-- The header filter of the subrequest: keep what the request needs later. Variables are shared with the request.
function _M.keep()
  local a = of_request()
  local headers = ngx.resp.get_headers(200)
  local kept = {}
  for _, name in ipairs(a.response_headers or {}) do
    local value = headers[name]
    kept[name] = type(value) == "table" and value[1] or value or false
  end
  local cookies = headers["Set-Cookie"]
  ngx.var.sluice_auth_result = cjson.encode({
    headers = kept,
    cookies = type(cookies) == "table" and cookies or cookies and { cookies } or nil,
    always = a.always_set_cookie,
  })
end

local function result()
  local text = ngx.var.sluice_auth_result
  return text ~= "" and cjson.decode(text) or nil
end

-- The access phase of the request, after auth_request allowed it: copy headers of the answer; ones it lacks are removed.
function _M.accept()
  local kept = result()
  for name, value in pairs(kept and kept.headers or {}) do
    if value then
      ngx.req.set_header(name, value)
    else
      ngx.req.clear_header(name)
    end
  end
end

local COOKIE_STATUS = { [200] = true, [201] = true, [204] = true, [206] = true, [301] = true, [302] = true, [303] = true, [304] = true,
  [307] = true, [308] = true }

-- The header filter of the request: the auth service's cookies.
function _M.add_cookies()
  local kept = result()
  if not kept or not kept.cookies or not (kept.always or COOKIE_STATUS[ngx.status]) then
    return
  end
  local present = ngx.header["Set-Cookie"]
  local all = type(present) == "table" and present or present and { present } or {}
  for _, cookie in ipairs(kept.cookies) do
    all[#all + 1] = cookie
  end
  ngx.header["Set-Cookie"] = all
end

-- `@sluice_signin`: a 401 of the auth check becomes a redirect.
function _M.signin()
  local var = ngx.var
  local a = of_request()
  local url = template.expand(a.signin or "")
  local param = a.signin_redirect_param or "rd"
  if not url:find("[?&]" .. param:gsub("%p", "%%%0") .. "=") then
    local back = var.pass_access_scheme .. "://" .. (var.best_http_host or var.host) .. ngx.escape_uri(var.request_uri)
    url = url .. (url:find("?", 1, true) and "&" or "?") .. param .. "=" .. back
  end
  if url:find("[%c ]") then
    return ngx.exit(500)
  end
  ngx.header["Location"] = url
  return ngx.exit(302)
end

return _M
