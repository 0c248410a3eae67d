-- Which route of a host row answers a URI.
local byte, sub = string.byte, string.sub
local SLASH = 47

local _M = {}

local function by_regex(row, uri)
  local list = row.regex
  for i = 1, #list do
    local from, _, err = ngx.re.find(uri, list[i][1], "ijo")
    if from then
      return row.routes[list[i][2] + 1]
    elseif err then
      ngx.log(ngx.WARN, "path regex gave up: ", err)
    end
  end
  return nil
end

-- route; or nil and true: nginx's own redirect to the URI plus a slash.
function _M.find(row, uri)
  if row.regex then
    return by_regex(row, uri)
  end
  local index = row.exact[uri]
  if index then
    return row.routes[index + 1]
  end
  if row.slash and row.slash[uri] then
    return nil, true
  end
  local prefix = row.prefix
  local n = #uri
  if n > row.longest then
    n = row.longest
  end
  while n > 0 do
    if byte(uri, n) == SLASH then
      index = prefix[sub(uri, 1, n)]
      if index then
        return row.routes[index + 1]
      end
    end
    n = n - 1
  end
  return nil
end

-- Whether any of the prepared patterns (see prepare.lua) matches.
function _M.any(patterns, text)
  for i = 1, #patterns do
    local p = patterns[i]
    if p.literal then
      if p.literal:lower() == text:lower() then
        return true
      end
    elseif ngx.re.find(text, p.regex, "ijo") then
      return true
    end
  end
  return false
end

return _M
