-- Which endpoint of a backend serves a try of a request.
local balancer = require("ngx.balancer")
local node = require("sluice.node")
local rows = require("sluice.rows")
local chash = require("sluice.chash")
local cidr = require("sluice.cidr")
local affinity = require("sluice.affinity")
local template = require("sluice.template")
local ewma = require("sluice.ewma")

local set_current_peer, set_more_tries = balancer.set_current_peer, balancer.set_more_tries

local MAX_TRIES = 16

local _M = {}

-- Names the built-in default backend, as no row can: keys have a slash.
_M.BUILTIN = "builtin"

-- Whether there is anything to send to; the router answers 503 otherwise.
function _M.alive(backend)
  if #backend.endpoints > 0 then
    return true
  end
  local addresses = backend.external and rows.resolved(backend.external)
  return addresses ~= nil and #addresses > 0
end

local function round_robin(backend, tried)
  local endpoints = backend.endpoints
  local count = #endpoints
  for _ = 1, count do
    local i = backend.next % count + 1
    backend.next = i
    if not (tried and tried[endpoints[i].id]) then
      return i
    end
  end
  return backend.next
end

local function by_hash(backend, tried)
  if tried and next(tried) then
    return round_robin(backend, tried)
  end
  local key = template.expand(backend.hash_by or "")
  if backend.balance == "chashsubset" then
    return chash.find_in_subset(backend, key)
  end
  return chash.find(backend, key)
end

local function sticky(backend, tried)
  local chosen = ngx.var.sluice_endpoint
  local retry = tried and next(tried)
  local fresh = ngx.var.sluice_cookie ~= "" -- the client has no valid cookie yet: it gets one of an endpoint that answers
  if chosen ~= "" and not (retry and backend.affinity and (backend.affinity.change_on_failure or fresh)) then
    for i, e in ipairs(backend.endpoints) do
      if e.id == chosen then
        return i
      end
    end
  end
  if backend.affinity then
    return affinity.pick(backend, { path = ngx.var.location_path }, ngx.var.sluice_row, tried)
  end
  return round_robin(backend, tried)
end

local PICK = {
  round_robin = round_robin,
  ewma = ewma.pick,
  chash = by_hash,
  chashsubset = by_hash,
  sticky_balanced = sticky,
  sticky_persistent = sticky,
}

local function to_external(backend)
  local addresses = rows.resolved(backend.external) or {}
  local count = #addresses
  if count == 0 then
    return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE)
  end
  backend.next = backend.next % count + 1
  local address = addresses[backend.next]
  if backend.any_address == false and cidr.forbidden(address) then
    ngx.log(ngx.WARN, "address refused: ", backend.name)
    return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE)
  end
  if count > 1 and not balancer.get_last_failure() then
    set_more_tries(math.min(count - 1, MAX_TRIES))
  end
  return set_current_peer(address, backend.external_port)
end

local function tried_so_far(count)
  local ctx = ngx.ctx
  local tried = ctx.tried
  if not tried then
    set_more_tries(math.min(count - 1, MAX_TRIES))
    tried = {}
    ctx.tried = tried
  end
  return tried
end

-- The balancer phase of `sluice_http` and its sisters.
function _M.balance()
  local key = ngx.var.sluice_backend
  if key == _M.BUILTIN then
    return set_current_peer(node.builtin)
  end
  local backend = rows.backend_of_request(key)
  if not backend then
    return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE)
  end
  local endpoints = backend.endpoints
  local count = #endpoints
  local e
  if count == 1 then
    e = endpoints[1]
  elseif count == 0 then
    if backend.external then
      return to_external(backend)
    end
    return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE)
  else
    local tried = tried_so_far(count)
    e = endpoints[(PICK[backend.balance] or round_robin)(backend, tried)]
    tried[e.id] = true
  end
  if backend.balance == "ewma" then
    ewma.used = true
  end
  local ok, err = set_current_peer(e[1], e[2])
  if not ok then
    ngx.log(ngx.ERR, "cannot use endpoint ", e.id, " of ", backend.name, ": ", err)
  end
end

return _M
