"""What the store of results does atomically, as Lua that runs on the server.

Keys of every script: a document, then one or two others of its slot; see :mod:`shared.backends.result_store`.
"""

from __future__ import annotations

# Whether one position is later than another, by the rule of SourcePosition.later_than; one without a topic, which is
# none, is earlier than any. An erasure is later than a version at the same position: `bars`.
_ORDER = """
local function place(topic, id, partition, offset, time)
  return {topic = topic or '', id = id, partition = tonumber(partition), offset = tonumber(offset),
          time = tonumber(time)}
end
local function later(a, b)
  if a.topic == '' or b.topic == '' then return a.topic ~= '' end
  if a.topic == b.topic and a.partition == b.partition and (a.id == b.id or a.id == '' or b.id == '') then
    return a.offset > b.offset
  end
  for _, part in ipairs({'time', 'offset', 'partition'}) do
    if a[part] ~= b[part] then return a[part] > b[part] end
  end
  return a.id > b.id
end
local FIELDS = {'version', 'json', 'entities', 'published', 'topic', 'topic_id', 'partition', 'offset', 'time',
                'erased', 'swept'}
local function read(key)
  local found, values = {}, redis.call('HMGET', key, unpack(FIELDS))
  for n, name in ipairs(FIELDS) do found[name] = values[n] end
  found.place = place(unpack(values, 5, 9))
  return found
end
local function bars(old, new)
  if not old.version then return false end
  if old.erased then return not later(new, old.place) end
  return later(old.place, new)
end
local function newest(old)
  if not old.erased then return old.json end
  return {old.topic, old.topic_id, old.partition, old.offset, old.time}
end
-- How many have begun to publish on behalf of a version and are not known to have ended. One that died is never known
-- to: its last record may arrive after all others, so whoever is given its record has to publish the newest again.
-- Earlier releases noted no number.
local function holders(open)
  local count = redis.call('HGET', KEYS[1], open)
  return count and (tonumber(count) or 1) or 0
end
local function hold(open) redis.call('HSET', KEYS[1], open, holders(open) + 1) end
local function release(open)
  local left = holders(open) - 1
  if left > 0 then redis.call('HSET', KEYS[1], open, left) else redis.call('HDEL', KEYS[1], open) end
end
local function unchanged(old, open, published)
  if published or old.published == old.version then return {'unchanged', false} end
  hold(open)
  return {'unchanged', newest(old)}
end
local function barred(old, open, outcome)
  if holders(open) == 0 then return {outcome, false} end
  hold(open)
  return {outcome, newest(old)}
end
local function each(command, key, first)
  for n = first, #ARGV, 1000 do redis.call(command, key, unpack(ARGV, n, math.min(n + 999, #ARGV))) end
end
"""

# Keys: document, its index keys. Arguments: version, position (5), time to live of the second key, index keys. Notes
# that the document is going to be found under these, unless its result would not be written. Returns how often the
# index keys have been swept; false where nothing would be written.
RESERVE = (
    _ORDER
    + """
local old = read(KEYS[1])
if old.version == ARGV[1] or bars(old, place(unpack(ARGV, 2, 6))) then return false end
each('SADD', KEYS[2], 8)
if #ARGV > 7 and tonumber(ARGV[7]) > 0 then redis.call('EXPIRE', KEYS[2], ARGV[7]) end
return old.swept or '0'
"""
)

# Keys: document, counters, last erasure. Arguments: version, JSON, entities, time to live, position (5), 1 if it was
# published, what RESERVE returned. Returns the outcome, and the newest where that has to be published, as JSON or, of
# an erasure, as its position; for `written` the JSON that was replaced. `again`: begin with RESERVE.
PUT = (
    _ORDER
    + """
local version, new, published = ARGV[1], place(unpack(ARGV, 5, 9)), ARGV[10] == '1'
local open, old = 'open:' .. version, read(KEYS[1])
if old.version == version then return unchanged(old, open, published) end
if bars(old, new) then
  local mark = redis.call('HMGET', KEYS[3], 'topic', 'topic_id', 'partition', 'offset', 'time')
  local gone = mark[1] and not later(new, place(unpack(mark)))
  return barred(old, open, gone and 'erased' or 'superseded')
end
if (old.swept or '0') ~= ARGV[11] then return {'again', false} end
if not old.version then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'version', version, 'json', ARGV[2], 'entities', ARGV[3], 'topic', ARGV[5],
           'topic_id', ARGV[6], 'partition', ARGV[7], 'offset', ARGV[8], 'time', ARGV[9])
redis.call('HDEL', KEYS[1], 'erased')
if published then redis.call('HSET', KEYS[1], 'published', version) else hold(open) end
if not old.json then redis.call('HINCRBY', KEYS[2], 'documents', 1) end
redis.call('HINCRBY', KEYS[2], 'entities', ARGV[3] - (old.entities or 0))
if tonumber(ARGV[4]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[4]) else redis.call('PERSIST', KEYS[1]) end
return {'written', old.json}
"""
)

# Keys: document, counters, last erasure. Arguments: version, time to live, position (5), 1 if it was published.
# Returns as PUT does.
ERASE = (
    _ORDER
    + """
local version, new, published = ARGV[1], place(unpack(ARGV, 3, 7)), ARGV[8] == '1'
local open, old = 'open:' .. version, read(KEYS[1])
local function expire(key)
  if tonumber(ARGV[2]) > 0 then redis.call('EXPIRE', key, ARGV[2]) else redis.call('PERSIST', key) end
end
local function position(key)
  redis.call('HSET', key, 'topic', ARGV[3], 'topic_id', ARGV[4], 'partition', ARGV[5], 'offset', ARGV[6],
             'time', ARGV[7])
end
local mark = redis.call('HMGET', KEYS[3], 'topic', 'topic_id', 'partition', 'offset', 'time')
if not later(place(unpack(mark)), new) then
  position(KEYS[3])
  expire(KEYS[3])
end
if old.version == version then return unchanged(old, open, published) end
if old.version and later(old.place, new) then
  return barred(old, open, 'superseded')
end
if not old.version then redis.call('DEL', KEYS[1]) end
redis.call('HDEL', KEYS[1], 'json', 'entities')
redis.call('HSET', KEYS[1], 'version', version, 'erased', '1')
position(KEYS[1])
if published then redis.call('HSET', KEYS[1], 'published', version) else hold(open) end
if old.json then
  redis.call('HINCRBY', KEYS[2], 'documents', -1)
  redis.call('HINCRBY', KEYS[2], 'entities', 0 - (old.entities or 0)) -- not -0, which is no integer
end
expire(KEYS[1])
return {'written', old.json}
"""
)

# Key: document. The version in ARGV[2] was published on behalf of that in ARGV[1]. Returns 1 if it is the newest, 0 if
# there is none (any more), else the newest. What is open stays so until its publisher knows that the newest came last.
PUBLISHED = (
    _ORDER
    + """
local now = read(KEYS[1])
if not now.version then return 0 end
if now.version ~= ARGV[2] then return newest(now) end
redis.call('HSET', KEYS[1], 'published', ARGV[2])
release('open:' .. ARGV[1])
return 1
"""
)

# Keys: document, its index keys. A sweep begins: who has reserved an index key before has to do so again. Returns
# version and JSON of the newest, and the index keys.
SWEEP = """
local now = redis.call('HMGET', KEYS[1], 'version', 'json')
if now[1] then redis.call('HINCRBY', KEYS[1], 'swept', 1) end
return {now[1], now[2], redis.call('SMEMBERS', KEYS[2])}
"""

# Keys: document, its index keys. Arguments: version, index keys where the document is no longer found. Returns 0 where
# another version came meanwhile, which may be found there; then nothing is done.
SWEPT = (
    _ORDER
    + """
local now = redis.call('HGET', KEYS[1], 'version')
if (now or '') ~= ARGV[1] then return 0 end
if now then redis.call('HINCRBY', KEYS[1], 'swept', 1) end
each('SREM', KEYS[2], 2)
return 1
"""
)
