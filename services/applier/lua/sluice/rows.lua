-- Rows in shared memory, parsed once per worker and version of the row.
-- `state.v` is a counter that every push moves last: while it stands, a cached row is valid without another look-up.
local cjson = require("cjson.safe")
local lrucache = require("resty.lrucache")
local prepare = require("sluice.prepare")

local tables = ngx.shared.sluice_tables
local state = ngx.shared.sluice_state

local CACHED_HOSTS = 16384
local CACHED_BACKENDS = 16384

local _M = {}

local hosts = assert(lrucache.new(CACHED_HOSTS))
local backends = assert(lrucache.new(CACHED_BACKENDS))
local others = assert(lrucache.new(4096))
-- Backends that went while a request may have been on its way to them.
local GONE_SECONDS = 3600
local gone = assert(lrucache.new(1024))

-- The counter that tells whether cached rows may have changed; read once a request and passed along.
function _M.now()
  return state:get("v")
end

local function fetch(cache, key, make, v)
  v = v or state:get("v")
  local entry = cache:get(key)
  if entry and entry.v == v then
    return entry.row
  end
  local raw = tables:get(key)
  if not raw then
    if entry then
      cache:delete(key)
      if cache == backends then
        gone:set(key, entry.row, GONE_SECONDS)
      end
    end
    return nil
  end
  if entry and entry.raw == raw then
    entry.v = v
    return entry.row
  end
  local row = cjson.decode(raw)
  if not row then
    ngx.log(ngx.ERR, "row is not JSON: ", key)
    return nil
  end
  if make then
    make(row, key)
  end
  cache:set(key, { v = v, raw = raw, row = row })
  return row
end

-- The host row `h/<name>`; nil: no such row.
function _M.host(name, v)
  return fetch(hosts, "h/" .. name, prepare.host, v)
end

-- The form that the row had before the last policy change, for workers of the old generation; nil: none.
function _M.previous_host(name, v)
  return fetch(others, "p:h/" .. name, prepare.host, v)
end

function _M.alias(name)
  local row = fetch(others, "a/" .. name)
  return row and row.host
end

function _M.regex_aliases()
  local row = fetch(others, "r")
  return row and row.aliases
end

-- The backend row `b/<key>`.
function _M.backend(key, v)
  return fetch(backends, "b/" .. key, prepare.backend, v)
end

-- For the balancer, which runs when a request's body is read: a backend that went meanwhile serves it as this worker last knew it.
function _M.backend_of_request(key)
  return _M.backend(key) or gone:get("b/" .. key)
end

local NO_SETTINGS = {}
prepare.settings(NO_SETTINGS)

function _M.settings(v)
  return fetch(others, "s", prepare.settings, v) or NO_SETTINGS
end

-- Addresses of a host name, as this node's applier resolved it.
function _M.resolved(name)
  local row = fetch(others, "n/" .. name)
  return row and row.addresses
end

-- Certificate digest for an SNI name, not cached: a handshake costs far more.
function _M.tls_name(name)
  local raw = tables:get("t/" .. name)
  local row = raw and cjson.decode(raw)
  return row and row.certificate
end

function _M.certificate(digest)
  local raw = tables:get("c/" .. digest)
  return raw and cjson.decode(raw)
end

return _M
