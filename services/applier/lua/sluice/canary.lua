-- Which of two backends serves a request: header, cookie, weight, in this order (behaviours: canary).
local rows = require("sluice.rows")
local affinity = require("sluice.affinity")
local balancing = require("sluice.balancing")

local _M = {}

-- true: the canary; false: the primary; nil: this rule has no opinion.
local function by_header(c)
  if not c.header then
    return nil
  end
  local value = ngx.var["http_" .. c.header:lower():gsub("-", "_")]
  if not value then
    return nil
  end
  if c.header_value then
    return value == c.header_value or nil
  elseif c.header_pattern then
    local from, _, err = ngx.re.find(value, c.header_pattern, "jo")
    if err then
      return false
    end
    return from ~= nil or nil
  elseif value == "always" then
    return true
  elseif value == "never" then
    return false
  end
  return nil
end

local function by_cookie(c)
  local value = c.cookie and ngx.var["cookie_" .. c.cookie]
  if value == "always" then
    return true
  elseif value == "never" then
    return false
  end
  return nil
end

local function chosen(c)
  local verdict = by_header(c)
  if verdict == nil then
    verdict = by_cookie(c)
  end
  if verdict == nil then
    verdict = math.random(c.total or 100) <= (c.weight or 0)
  end
  return verdict
end

-- The backend that serves: the primary (which has endpoints) or its canary.
function _M.choose(primary)
  local c = primary.canary
  local canary = rows.backend(c.backend)
  if not canary or not balancing.alive(canary) then
    return primary
  end
  if primary.affinity and affinity.key(primary) then
    return primary
  end
  if canary.affinity and affinity.key(canary) then
    return canary
  end
  if chosen(c) then
    return canary
  end
  return primary
end

return _M
