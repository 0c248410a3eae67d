-- The certificate phase: SNI -> exact name, `*.parent`, the default certificate, else the node's own.
local ssl = require("ngx.ssl")
local lrucache = require("resty.lrucache")
local rows = require("sluice.rows")

local _M = {}

local parsed = assert(lrucache.new(4096))

-- {chain, key} as OpenSSL objects; parsing costs more than a handshake should.
local function material(digest)
  local found = parsed:get(digest)
  if found then
    return found
  end
  local row = rows.certificate(digest)
  if not row then
    return nil
  end
  local chain, err = ssl.parse_pem_cert(row.chain)
  local key
  if chain then
    key, err = ssl.parse_pem_priv_key(row.key)
  end
  if not key then
    ngx.log(ngx.ERR, "certificate ", digest, " cannot be used: ", err)
    return nil
  end
  found = { chain, key }
  parsed:set(digest, found)
  return found
end

local function digest_of(name)
  if name then
    name = name:lower():gsub("%.$", "")
    local digest = rows.tls_name(name)
    if digest then
      return digest
    end
    local dot = name:find(".", 1, true)
    digest = dot and rows.tls_name("*" .. name:sub(dot))
    if digest then
      return digest
    end
  end
  return rows.tls_name("_")
end

function _M.choose()
  local digest = digest_of(ssl.server_name())
  local found = digest and material(digest)
  if not found then
    return -- the listener's own certificate
  end
  ssl.clear_certs()
  local ok, err = ssl.set_cert(found[1])
  if ok then
    ok, err = ssl.set_priv_key(found[2])
  end
  if not ok then
    ngx.log(ngx.ERR, "certificate ", digest, " cannot be set: ", err)
    return ngx.exit(ngx.ERROR)
  end
end

return _M
