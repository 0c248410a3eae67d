-- Which route of a host row answers a URI.
local byte, sub = string.byte, string.sub
local SLASH = 47

-- In place of a route: a regular expression reached its match limit (nginx itself answers 500 then).
local _M = { GAVE_UP = {} }

local function by_regex(row, uri)
  local list = row.regex
  for i = 1, #list do
    local from, _, err = ngx.re.find(uri, list[i][1], "ijo")
    if from then
      return row.routes[list[i][2] + 1]
    elseif err then
      ngx.log(ngx.WARN, "path regex gave up: ", err)
      if not err:find("pcre_compile", 1, true) then -- it may be the one that guards this URI: the next one must not answer for it
        return _M.GAVE_UP
      end
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

-- Whether any of the prepared patterns (see prepare.lua) matches. `in_doubt`: what holds for text that a pattern gives up on.
function _M.any(patterns, text, in_doubt)
  for i = 1, #patterns do
    local p = patterns[i]
    if p.literal then
      if p.literal:lower() == text:lower() then
        return true
      end
    else
      local from, _, err = ngx.re.find(text, p.regex, "ijo")
      if from or err and in_doubt then
        return true
      end
    end
  end
  return false
end

return _M
