"""How users' pasts are stored in Redis: keys, members, and the Lua scripts that read and write them.

Three keys for each user:

    asmg:past:USER        a sorted set of the last interactions, by time in milliseconds, then by member
    asmg:features:USER    the features that are valid now, as JSON; expires when the next version becomes valid
    asmg:past-lease:USER  the token of the reader that may fill the other two

The member of a click is its event id, NUL and the item id; that of an interaction without a click is its event id. No
id contains NUL, which sorts before every other character, so the order is that of the log. A user without interactions
is cached as the one member `NOTHING`. A user counts as cached only if both set and features are there: Redis may evict
either alone.

A sorted set holds the last `RECENT` interactions and the last clicks of a history. It may hold more, which is ignored.
"""

from typing import NamedTuple

from service.storage.postgres.repositories import PastEvent

__all__ = [
    "APPEND_SCRIPT",
    "CLICKS_CHANNEL",
    "EVERYBODY",
    "FILL_SCRIPT",
    "MOST_MEMBERS",
    "NOTHING",
    "READ_SCRIPT",
    "UserKeys",
    "keys_of",
    "member_of",
]

NOTHING = b""
"""The member of a user without interactions."""

MOST_MEMBERS = 90
"""Members from which on a set is cut to those that count. That is seldom, since cutting reads the whole set."""

CLICKS_CHANNEL = "asmg:clicks"
"""Channel of users whose past or features have changed, joined by NUL."""
EVERYBODY = b""
"""Message on that channel that stands for all users."""

# KEYS: sets of users. ARGV: clicks of a history, RECENT, RECENT_SHORT.
# For each cached user it returns one text: the three numbers of `StoredPast.recent`, then, each after a NUL, the
# features and the items clicked, newest first. All users take one command with one part in the answer each, since every
# command and every part costs the client more time than Redis needs for the work.
READ_SCRIPT = """
local length, recent, short = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found = {}
for i, key in ipairs(KEYS) do
  local members = redis.call('ZREVRANGE', key, 0, -1)
  local features = #members > 0 and redis.call('GET', 'asmg:features:' .. string.sub(key, #'asmg:past:' + 1))
  local few, clicks, past = 0, 0, {'', features}
  for n, member in ipairs(members) do
    local item = string.match(member, '%z(.*)')
    if item then
      if n <= short then few = few + 1 end
      if n <= recent then clicks = clicks + 1 end
      if #past < length + 2 then past[#past + 1] = item end
    end
  end
  local size = members[1] == '' and 0 or math.min(#members, recent)
  past[1] = size .. ' ' .. few .. ' ' .. clicks
  found[i] = features and table.concat(past, '\\0')
end
return found
"""

# KEYS: set, features, lease.
# ARGV: token, expiry of the set in seconds, features, expiry of the features in milliseconds, then a score and a member
# for each interaction. If the lease is gone, something was committed after the reader had read Postgres, so what it
# read may be incomplete and is not stored.
FILL_SCRIPT = """
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[3])
for i = 5, #ARGV, 2 do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return 1
"""

# ARGV: clicks of a history, RECENT, MOST_MEMBERS, channel, the users joined by NUL (which is also the message), and for
# each event its user, time, event id, item and kind, each followed by NUL. Users and events are one text each, and the
# script builds the keys, since every argument costs the client time. Most users are not cached, and two commands find
# that out for all of them.
# The kinds are 1: a click, 0: an interaction without a click, 2: an item that was shown. A click replaces the
# interaction without a click of the same event; either replaces an item that was shown.
# The expiry stays that of the fill, so a set that missed an append lives no longer than that.
APPEND_SCRIPT = """
local length, recent, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function cut(key)
  local clicks, gone = 0, {}
  for n, member in ipairs(redis.call('ZREVRANGE', key, 0, -1)) do
    local click = string.find(member, '%z')
    if click then clicks = clicks + 1 end
    if n > recent and not (click and clicks <= length) then gone[#gone + 1] = member end
  end
  redis.call('ZREM', key, unpack(gone))
end
local keys, leases = {}, {}
for user in string.gmatch(ARGV[5], '%Z+') do
  keys[#keys + 1] = 'asmg:past:' .. user
  leases[#leases + 1] = 'asmg:past-lease:' .. user
end
redis.call('DEL', unpack(leases))
local cached = {}
local function is_cached(key)
  if cached[key] == nil then cached[key] = redis.call('EXISTS', key) == 1 end
  return cached[key]
end
local events = redis.call('EXISTS', unpack(keys)) > 0 and ARGV[6] or ''
for user, score, event, item, kind in string.gmatch(events, '(%Z+)%z(%Z+)%z(%Z+)%z(%Z+)%z(%Z+)%z') do
  local key = 'asmg:past:' .. user
  if is_cached(key) then
    local click = event .. '\\0' .. item
    if kind == '1' then
      redis.call('ZREM', key, '', event)
      redis.call('ZADD', key, score, click)
    elseif not redis.call('ZSCORE', key, click) then
      redis.call('ZREM', key, '')
      if kind == '0' then redis.call('ZADD', key, score, event) else redis.call('ZADD', key, 'NX', score, event) end
    end
    if redis.call('ZCARD', key) > most then cut(key) end
  end
end
redis.call('PUBLISH', ARGV[4], ARGV[5])
"""


class UserKeys(NamedTuple):
    """The keys of one user."""

    past: str
    features: str
    lease: str


def keys_of(user_id: str) -> UserKeys:
    """The keys of a user; for `"*"`, patterns of the keys of all users."""
    return UserKeys(f"asmg:past:{user_id}", f"asmg:features:{user_id}", f"asmg:past-lease:{user_id}")


def member_of(event: PastEvent) -> bytes:
    """The member of an interaction in its user's set."""
    return (f"{event.event_id}\0{event.item_id}" if event.label else event.event_id).encode()
