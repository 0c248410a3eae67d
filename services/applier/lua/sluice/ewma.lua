-- Peak EWMA: of two random endpoints the one with the lower score. Scores decay with a time constant of ten seconds and are shared by
-- the workers; a new endpoint starts at the average of the others (behaviours: load balancing).
local DECAY_SECONDS = 10

local scores = ngx.shared.sluice_state
local _M = { used = false }

local function read(id)
  local text = scores:get("e:" .. id)
  if not text then
    return nil
  end
  local score, at = text:match("^(%S+) (%S+)$")
  return tonumber(score), tonumber(at)
end

local function decayed(id, now)
  local score, at = read(id)
  return score and score * math.exp(-math.max(now - at, 0) / DECAY_SECONDS)
end

local function average(endpoints, now)
  local sum, n = 0, 0
  for _, e in ipairs(endpoints) do
    local score = decayed(e.id, now)
    if score then
      sum, n = sum + score, n + 1
    end
  end
  return n > 0 and sum / n or 0
end

function _M.pick(backend, tried)
  local endpoints = backend.endpoints
  local open = {}
  for i, e in ipairs(endpoints) do
    if not tried[e.id] then
      open[#open + 1] = i
    end
  end
  if #open == 0 then
    for i = 1, #endpoints do
      open[i] = i
    end
  end
  if #open == 1 then
    return open[1]
  end
  local now = ngx.now()
  local a = math.random(#open)
  local b = math.random(#open - 1)
  b = b >= a and b + 1 or b
  local first, second = open[a], open[b]
  local x = decayed(endpoints[first].id, now) or average(endpoints, now)
  local y = decayed(endpoints[second].id, now) or average(endpoints, now)
  return y < x and second or first
end

-- After a response: `id` is `address:port`, `seconds` connect and response time of the last try.
function _M.note(id, seconds)
  local now = ngx.now()
  local score, at = read(id)
  if score then
    local weight = math.exp(-math.max(now - at, 0) / DECAY_SECONDS)
    seconds = score * weight + seconds * (1 - weight)
  end
  -- an hour without a request forgets an endpoint
  scores:set("e:" .. id, string.format("%.6f %.3f", seconds, now), 3600)
end

return _M
