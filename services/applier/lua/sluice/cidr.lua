-- Address lists: parsed once, matched on the binary address.
local bit = require("bit")

local byte, char, sub = string.byte, string.char, string.sub
local band, rshift = bit.band, bit.rshift

local _M = {}

local function v4(text)
  local a, b, c, d = text:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$")
  if not a then
    return nil
  end
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  if a > 255 or b > 255 or c > 255 or d > 255 then
    return nil
  end
  return char(a, b, c, d)
end

local function groups(text)
  local out = {}
  if text == "" then
    return out
  end
  for part in (text .. ":"):gmatch("([^:]*):") do
    local tail = v4(part)
    if tail then
      out[#out + 1] = sub(tail, 1, 2)
      out[#out + 1] = sub(tail, 3, 4)
    else
      local n = part:match("^%x%x?%x?%x?$") and tonumber(part, 16)
      if not n then
        return nil
      end
      out[#out + 1] = char(rshift(n, 8), band(n, 255))
    end
  end
  return out
end

local function v6(text)
  local head, tail = text:match("^(.-)::(.*)$")
  local left, right = groups(head or text), groups(tail or "")
  if not left or not right then
    return nil
  end
  if not head then
    return #left == 8 and table.concat(left) or nil
  end
  local missing = 8 - #left - #right
  if missing < 1 then
    return nil
  end
  return table.concat(left) .. ("\0\0"):rep(missing) .. table.concat(right)
end

-- The 4 or 16 bytes of an address; nil for anything else.
function _M.binary(text)
  return v4(text) or (text:find(":", 1, true) and v6(text)) or nil
end

-- A list of CIDRs or addresses, for `contains`. What cannot be parsed is left out (the compiler has refused it before).
function _M.list(items)
  local out = {}
  for _, item in ipairs(items) do
    local address, length = item:match("^([^/]+)/?(%d*)$")
    local bytes = address and _M.binary(address)
    if bytes then
      local bits = tonumber(length) or #bytes * 8
      local whole, rest = math.floor(bits / 8), bits % 8
      out[#out + 1] = { size = #bytes, whole = whole, prefix = sub(bytes, 1, whole), rest = rest,
        last = rest > 0 and rshift(byte(bytes, whole + 1), 8 - rest) or 0 }
    end
  end
  return out
end

local MAPPED = ("\0"):rep(10) .. "\255\255"

function _M.contains(list, address)
  if #address == 16 and sub(address, 1, 12) == MAPPED then
    address = sub(address, 13)
  end
  local size = #address
  for i = 1, #list do
    local c = list[i]
    if c.size == size and sub(address, 1, c.whole) == c.prefix
      and (c.rest == 0 or rshift(byte(address, c.whole + 1), 8 - c.rest) == c.last) then
      return true
    end
  end
  return false
end

-- Addresses that a route of a cluster must not reach: loopback, link-local (metadata services), unspecified, multicast.
local FORBIDDEN

function _M.forbidden(text)
  FORBIDDEN = FORBIDDEN or _M.list({ "127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/8", "224.0.0.0/4", "::1/128", "::/128", "fe80::/10", "ff00::/8" })
  local bytes = _M.binary(text)
  return not bytes or _M.contains(FORBIDDEN, bytes)
end

return _M
