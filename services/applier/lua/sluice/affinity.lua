-- Cookie affinity: `<key>|<backend id>` (behaviours: session affinity). The router picks the endpoint; the balancer follows.
local chash = require("sluice.chash")

local _M = {}

local function cookie_name(a)
  return a.cookie or "INGRESSCOOKIE"
end

-- hex md5( hex md5(name) + name ): which backend a cookie belongs to.
local function backend_id(backend)
  local id = backend.cookie_id
  if not id then
    id = ngx.md5(ngx.md5(backend.name) .. backend.name)
    backend.cookie_id = id
  end
  return id
end

-- The key in the client's cookie for this backend; nil: none.
function _M.key(backend)
  local value = ngx.var["cookie_" .. cookie_name(backend.affinity)]
  if not value then
    return nil
  end
  local key, id = value:match("^(.+)|(%x+)$")
  return id == backend_id(backend) and key or nil
end

local function persistent_keys(backend)
  local keys = backend.keys
  if not keys then
    keys = {}
    for i, e in ipairs(backend.endpoints) do
      keys[ngx.md5(backend.name .. e.id)] = i
    end
    backend.keys = keys
  end
  return keys
end

-- Some user agents treat SameSite=None as Strict, or refuse the cookie.
local function mishandles_none(agent)
  local pattern = [[Chrome/[456]\d?\.|\(iP.+; CPU .*OS 12[_\d]*.*\) AppleWebKit/|\(Macintosh;.*Mac OS X 10_14[_\d]*.*\) .*Safari]]
  return ngx.re.find(agent, pattern, "jo") ~= nil
end

local function location_allows(a, host, path)
  local paths = a.locations and (a.locations[host] or a.locations[(host:gsub("^[^.]+", "*", 1))])
  for _, p in ipairs(paths or {}) do
    if p == path then
      return true
    end
  end
  return false
end

-- The Set-Cookie value; attributes in ingress-nginx's order.
local function set_cookie(backend, key, route)
  local a = backend.affinity
  local parts = { cookie_name(a) .. "=" .. key .. "|" .. backend_id(backend) }
  if a.expires then
    parts[#parts + 1] = "Expires=" .. ngx.cookie_time(ngx.time() + a.expires)
  end
  if a.max_age then
    parts[#parts + 1] = "Max-Age=" .. a.max_age
  end
  if a.domain then
    parts[#parts + 1] = "Domain=" .. a.domain
  end
  parts[#parts + 1] = "Path=" .. (a.path or route.path or "/")
  if a.secure or ngx.var.scheme == "https" then
    parts[#parts + 1] = "Secure"
  end
  parts[#parts + 1] = "HttpOnly"
  if a.samesite and not (a.samesite == "None" and a.conditional_samesite_none and mishandles_none(ngx.var.http_user_agent or "")) then
    parts[#parts + 1] = "SameSite=" .. a.samesite
  end
  return table.concat(parts, "; ")
end

local function fresh_key(backend, tried)
  local mode = backend.affinity.mode or "balanced"
  local count = #backend.endpoints
  if mode == "persistent" then
    local i = math.random(count)
    for _ = 1, count do
      local id = backend.endpoints[i].id
      if not (tried and tried[id]) then
        break
      end
      i = i % count + 1
    end
    return ngx.md5(backend.name .. backend.endpoints[i].id), i
  end
  local key, i
  for _ = 1, 20 do
    key = string.format("%.3f.%d.%d", ngx.now(), ngx.worker.pid(), math.random(1000000))
    i = chash.find(backend, key)
    if not (tried and tried[backend.endpoints[i].id]) then
      break
    end
  end
  return key, i
end

-- The index of the endpoint for this request. Sets `$sluice_cookie` when a new endpoint is picked and the location asked for affinity.
function _M.pick(backend, route, host, tried)
  local a = backend.affinity
  local key = _M.key(backend)
  if key then
    local index
    if a.mode == "persistent" then
      index = persistent_keys(backend)[key]
    else
      index = chash.find(backend, key)
    end
    if index and not (tried and a.change_on_failure and tried[backend.endpoints[index].id]) then
      return index
    end
  end
  local fresh, index = fresh_key(backend, tried)
  if location_allows(a, host, route.path) then
    ngx.var.sluice_cookie = set_cookie(backend, fresh, route)
  end
  return index
end

return _M
