-- What a row gets when it is parsed, so that a request does not compute it: defaults, parsed address lists, encoded parts for later phases.
local cjson = require("cjson.safe")
local cidr = require("sluice.cidr")

local _M = {}

local function route(r)
  r.exec = "@p_" .. r.policy
  r.upstream_name = r.backend and (r.namespace or "") .. "-" .. (r.service or "") .. "-" .. (r.port or "") or "upstream-default-backend"
  r.names = r.vhost and r.vhost:find("$", 1, true) ~= nil
  if r.allow then
    r.allow_list = cidr.list(r.allow)
  end
  if r.block then
    r.block_list = cidr.list(r.block)
  end
  if r.auth then
    r.auth_text = cjson.encode(r.auth)
  end
  if r.cors then
    r.cors_text = cjson.encode(r.cors)
  end
  r.body_size = r.body_size or 1048576
  -- nothing to do before the jump but to name the backend
  r.plain = not (r.deny or r.redirect or r.ssl_redirect or r.rewrite or r.vhost or r.allow or r.block or r.basic or r.auth or r.cors
    or r.limit_key or r.errors or r.access_log == false)
end

function _M.host(row)
  for _, r in ipairs(row.routes) do
    route(r)
  end
  if row.slash then
    local set = {}
    for _, uri in ipairs(row.slash) do
      set[uri] = true
    end
    row.slash = set
  end
  row.exact = row.exact or {}
  row.prefix = row.prefix or {}
  row.longest = 0
  for prefix in pairs(row.prefix) do
    if #prefix > row.longest then
      row.longest = #prefix
    end
  end
end

function _M.backend(row, key)
  row.key = key:sub(3)
  row.endpoints = row.endpoints or {}
  if row.any_address == false then
    local usable = {}
    for _, e in ipairs(row.endpoints) do
      if not cidr.forbidden(e[1]) then
        usable[#usable + 1] = e
      end
    end
    row.endpoints = usable
  end
  row.balance = row.balance or "round_robin"
  for _, e in ipairs(row.endpoints) do
    local address = e[1]
    e.id = (address:find(":", 1, true) and "[" .. address .. "]" or address) .. ":" .. e[2]
  end
  row.next = math.random(0, 1023) -- workers do not start at the same endpoint
end

-- Patterns of block-user-agents and block-referers: `=text` is literal, anything else a PCRE.
local function patterns(list)
  local out = {}
  for _, item in ipairs(list or {}) do
    if item:sub(1, 1) == "=" then
      out[#out + 1] = { literal = item:sub(2) }
    else
      out[#out + 1] = { regex = item }
    end
  end
  return #out > 0 and out or nil
end

function _M.settings(row)
  row.http_redirect_code = row.http_redirect_code or 308
  row.user_agents = patterns(row.block_user_agents)
  row.referers = patterns(row.block_referers)
  row.cidrs = row.block_cidrs and #row.block_cidrs > 0 and cidr.list(row.block_cidrs) or nil
  row.skip_urls = patterns(row.skip_log_urls)
  row.blocks = row.user_agents ~= nil or row.referers ~= nil or row.cidrs ~= nil
end

return _M
