-- Which host row answers a host name: nginx's own precedence of server names, with the one-label wildcards of Ingress hosts.
local rows = require("sluice.rows")

local _M = {}

local function aliased(host)
  local target = rows.alias(host)
  if target then
    return target
  end
  local dot = host:find(".", 1, true)
  while dot do -- `*.suffix`, longest first, any depth
    target = rows.alias("*" .. host:sub(dot))
    if target then
      return target
    end
    dot = host:find(".", dot + 1, true)
  end
  for n = #host - 1, 1, -1 do -- `prefix.*`, longest first
    if host:byte(n) == 46 then
      target = rows.alias(host:sub(1, n) .. "*")
      if target then
        return target
      end
    end
  end
  return nil
end

local function by_regex(host)
  local aliases = rows.regex_aliases()
  for i = 1, aliases and #aliases or 0 do
    if ngx.re.find(host, aliases[i][1], "ijo") then
      return aliases[i][2]
    end
  end
  return nil
end

-- `*.parent` for one label of word characters or hyphens.
function _M.wildcard(host)
  local dot = host:find(".", 1, true)
  if dot and dot > 1 and not host:sub(1, dot - 1):find("[^%w_-]") then
    return "*" .. host:sub(dot)
  end
  return nil
end

-- row, its name. `lookup`: rows.host, or rows.previous_host for a worker of the old generation; `v`: rows.now().
function _M.find(host, lookup, v)
  local row = lookup(host, v)
  if row then
    return row, host
  end
  local target = #host <= 253 and aliased(host)
  if target then
    row = lookup(target)
    if row then
      return row, target
    end
  end
  local wildcard = _M.wildcard(host)
  row = wildcard and lookup(wildcard)
  if row then
    return row, wildcard
  end
  target = by_regex(host)
  row = target and lookup(target)
  if row then
    return row, target
  end
  return lookup("_"), "_"
end

local function is_alias(host, name)
  return name ~= host and name ~= "_" and name ~= _M.wildcard(host)
end

-- Whether the host of the request has a certificate entry: itself, or its one-label wildcard (ssl-redirect acts then). An alias has none of
-- its own. `row`, called `name`, answers for it. Remembered for the last host that asked: nearly always the only one.
function _M.has_tls(host, name, row, v)
  if row.tls_at ~= v or row.tls_host ~= host then
    local wildcard = _M.wildcard(host)
    local parent = wildcard and rows.host(wildcard, v)
    row.has_tls = row.tls and not is_alias(host, name) or parent and parent.tls or false
    row.tls_at, row.tls_host = v, host
  end
  return row.has_tls
end

return _M
