-- Commit one group of a batch: deduplicate, assign offsets, append, publish. Atomic, and safe to repeat.
--
-- KEYS  meta, stream
-- ARGV  candidate epoch, publisher, sequence, history size, history ttl (ms), position ttl (ms),
--       pub/sub channel, now (Unix seconds), publication …
-- Returns {epoch, offset of the last publication, 1 when committed or 0 when it was a repetition}.

local FORGET_PUBLISHER_SECONDS = 3600 -- far longer than any node or relay repeats a batch
local PUBLISHERS_KEPT = 32

local meta, stream = KEYS[1], KEYS[2]
local publisher, sequence, now = 'p:' .. ARGV[2], tonumber(ARGV[3]), ARGV[8]
local size, first_arg = tonumber(ARGV[4]), 9

local known = redis.call('HMGET', meta, 'epoch', 'offset', publisher)
local epoch, offset = known[1], tonumber(known[2] or '0')
if not epoch then
  epoch, offset = ARGV[1], 0
  redis.call('DEL', stream)
end

if known[3] and tonumber(string.match(known[3], '^%d+')) >= sequence then
  return {epoch, offset, 0}
end

-- A publisher that is new here makes room: nodes come and go, a channel may stay for years.
if not known[3] and redis.call('HLEN', meta) > PUBLISHERS_KEPT then
  local fields = redis.call('HGETALL', meta)
  for i = 1, #fields, 2 do
    local seen = string.match(fields[i + 1], '^%d+ ([%d.]+)$')
    if seen and string.sub(fields[i], 1, 2) == 'p:' and tonumber(now) - tonumber(seen) > FORGET_PUBLISHER_SECONDS then
      redis.call('HDEL', meta, fields[i])
    end
  end
end

local count = #ARGV - first_arg + 1
local last = offset + count
if size > 0 then
  for i = math.max(1, count - size + 1), count do
    redis.call('XADD', stream, string.format('%d-0', offset + i), 'p', ARGV[first_arg + i - 1])
  end
  redis.call('XTRIM', stream, 'MAXLEN', size)
  redis.call('PEXPIRE', stream, ARGV[5])
end
redis.call('HSET', meta, 'epoch', epoch, 'offset', string.format('%d', last), publisher, ARGV[3] .. ' ' .. now)
redis.call('PEXPIRE', meta, ARGV[6])

if count == 0 then
  return {epoch, last, 1}
end
local head = string.format('%s %d %d %s\n', epoch, offset + 1, count, now)
redis.call('PUBLISH', ARGV[7], head .. table.concat(ARGV, '', first_arg))
return {epoch, last, 1}
