-- Templates in rows: `$name` and `${name}` stand for request variables of this list, `$1`..`$9` for captures. Anything else is literal or empty.
-- The list is closed: a tenant's template must not read what nginx knows and the tenant should not (other requests' headers are fine, keys are not).
local ALLOWED = {
  host = true, http_host = true, hostname = true, request_uri = true, uri = true, args = true, query_string = true, is_args = true,
  scheme = true, request_method = true, remote_addr = true, remote_port = true, remote_user = true, server_port = true, server_name = true,
  request_id = true, binary_remote_addr = true, content_type = true, content_length = true, request_length = true, time_iso8601 = true,
  msec = true, connection = true, connection_requests = true, document_uri = true, request = true, nginx_version = true,
  ssl_protocol = true, ssl_server_name = true, ssl_client_s_dn = true, ssl_client_i_dn = true, ssl_client_verify = true,
  best_http_host = true, pass_access_scheme = true, pass_port = true, req_id = true, escaped_request_uri = true,
  namespace = true, ingress_name = true, service_name = true, service_port = true, location_path = true, proxy_upstream_name = true,
}

local function allowed(name)
  return ALLOWED[name] or name:match("^http_[%w_]+$") or name:match("^arg_[%w_]+$") or name:match("^cookie_[%w_]+$")
end

local _M = {}

local function value(name, captures)
  if name:match("^%d$") then
    return captures and captures[tonumber(name)] or ""
  end
  name = name:lower()
  if name == "escaped_request_uri" then
    return ngx.escape_uri(ngx.var.request_uri)
  end
  if not allowed(name) then
    return ""
  end
  return ngx.var[name] or ""
end

local find, sub, match = string.find, string.sub, string.match

-- The text with its variables filled in, in one pass: a value is never looked at again for more variables.
-- `captures`: of ngx.re.match, by number; may be nil; a group that did not take part reads as empty.
function _M.expand(text, captures)
  local at = find(text, "$", 1, true)
  if not at then
    return text
  end
  local out, from = {}, 1
  while at do
    out[#out + 1] = sub(text, from, at - 1)
    local name, finish = match(text, "^{([%w_]+)}()", at + 1)
    if not name then
      name, finish = match(text, "^(%d)()", at + 1)
    end
    if not name then
      name, finish = match(text, "^([%a_][%w_]*)()", at + 1)
    end
    if name then
      out[#out + 1] = value(name, captures) or ""
      from = finish
    else
      out[#out + 1] = "$"
      from = at + 1
    end
    at = find(text, "$", from, true)
  end
  out[#out + 1] = sub(text, from)
  return table.concat(out)
end

return _M
