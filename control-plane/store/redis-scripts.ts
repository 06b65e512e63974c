/**
 * What is done in Redis in one step each. Everything of a project is in one hash, so that Redis loses all of it or nothing,
 * and beside it stands the lock of the control plane that may write.
 *
 * KEYS: the hash, the lock. ARGV begins with the owner's token and its lease in milliseconds.
 */

/** Takes the lock, or renews it. Gives the owner, and the hash's identity as a text ("" where there is none). */
export const HOLD = `
local owner = redis.call('get', KEYS[2])
if not owner or owner == ARGV[1] then
  redis.call('set', KEYS[2], ARGV[1], 'px', ARGV[2])
  owner = ARGV[1]
end
return { owner, redis.call('hget', KEYS[1], 'meta') or '' }
`;

/**
 * Makes changes, if the lock is ours and the identity is what we know. ARGV[3]: that identity; ARGV[4]: the next one; then for
 * each change a field and its value, or "" to delete it. Gives the owner, and the identity that is there afterwards.
 */
export const WRITE = `
local owner = redis.call('get', KEYS[2])
if owner and owner ~= ARGV[1] then return { owner, redis.call('hget', KEYS[1], 'meta') or '' } end
redis.call('set', KEYS[2], ARGV[1], 'px', ARGV[2])
local is = redis.call('hget', KEYS[1], 'meta') or ''
if is ~= ARGV[3] then return { ARGV[1], is } end
for at = 5, #ARGV, 2 do
  if ARGV[at + 1] == '' then redis.call('hdel', KEYS[1], ARGV[at])
  else redis.call('hset', KEYS[1], ARGV[at], ARGV[at + 1]) end
end
redis.call('hset', KEYS[1], 'meta', ARGV[4])
redis.call('publish', KEYS[1], ARGV[4])
return { ARGV[1], ARGV[4] }
`;

/** Puts all of the hash in place of what is there, if the lock is ours. ARGV[3]: the new identity; then fields and values. */
export const REPLACE = `
local owner = redis.call('get', KEYS[2])
if owner and owner ~= ARGV[1] then return { owner, redis.call('hget', KEYS[1], 'meta') or '' } end
redis.call('set', KEYS[2], ARGV[1], 'px', ARGV[2])
redis.call('del', KEYS[1])
for at = 4, #ARGV, 2 do redis.call('hset', KEYS[1], ARGV[at], ARGV[at + 1]) end
redis.call('hset', KEYS[1], 'meta', ARGV[3])
redis.call('publish', KEYS[1], ARGV[3])
return { ARGV[1], ARGV[3] }
`;

/** Gives the lock back, if it is ours. */
export const RELEASE = `
if redis.call('get', KEYS[2]) == ARGV[1] then return redis.call('del', KEYS[2]) end
return 0
`;
