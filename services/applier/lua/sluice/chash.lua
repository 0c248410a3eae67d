-- A consistent-hash ring over a backend's endpoints (as ketama: 160 points an endpoint). The ring lives with the parsed row.
local POINTS = 160

local _M = {}

local function ring(backend)
  local r = backend.ring
  if not r then
    r = {}
    for i, e in ipairs(backend.endpoints) do
      for n = 1, POINTS do
        r[#r + 1] = { ngx.crc32_long(e.id .. "-" .. n), i }
      end
    end
    table.sort(r, function(a, b)
      return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
    end)
    backend.ring = r
  end
  return r
end

-- The index of the endpoint that `key` belongs to.
function _M.find(backend, key)
  local r = ring(backend)
  local hash = ngx.crc32_long(key)
  local low, high = 1, #r
  while low < high do
    local middle = math.floor((low + high) / 2)
    if r[middle][1] >= hash then
      high = middle
    else
      low = middle + 1
    end
  end
  if r[low][1] < hash then
    low = 1
  end
  return r[low][2]
end

-- A random endpoint of the key's group: endpoints in order, cut into groups of `size`, the last one filled up with the first ones.
function _M.find_in_subset(backend, key)
  local size, count = backend.subset_size or 3, #backend.endpoints
  local groups = math.ceil(count / size)
  local start = (ngx.crc32_long(key) % groups) * size
  return (start + math.random(0, size - 1)) % count + 1
end

return _M
