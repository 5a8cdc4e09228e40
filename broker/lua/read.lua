-- Read the end of a stream and a part of it. A channel never seen begins its epoch here.
--
-- KEYS  meta, stream
-- ARGV  candidate epoch, position ttl (ms), limit, start id, end id, 1 for newest first
-- Returns {epoch, offset of the last publication, entries as XRANGE or XREVRANGE gives them}.

local NEVER_PUBLISHED_MS = 3600000

local meta, stream = KEYS[1], KEYS[2]
local limit = tonumber(ARGV[3])

local known = redis.call('HMGET', meta, 'epoch', 'offset')
local epoch, offset = known[1], tonumber(known[2] or '0')
if not epoch then
  epoch, offset = ARGV[1], 0
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'epoch', epoch, 'offset', '0')
end
-- Whoever may subscribe may name channels for ever: one where nothing was ever published is soon forgotten.
local ttl = tonumber(ARGV[2])
if offset == 0 then
  ttl = math.min(ttl, NEVER_PUBLISHED_MS)
end
redis.call('PEXPIRE', meta, ttl)

local entries = {}
if limit > 0 then
  if ARGV[6] == '1' then
    entries = redis.call('XREVRANGE', stream, ARGV[5], ARGV[4], 'COUNT', limit)
  else
    entries = redis.call('XRANGE', stream, ARGV[4], ARGV[5], 'COUNT', limit)
  end
end
return {epoch, offset, entries}
