//! How often connections may be opened: token buckets by source, by identity and by destination, and who is exempt.
//!
//! A bucket is the time at which it is full again. It is read and written without a lock: two CPUs that look at the same
//! moment may let one connection more pass, never one fewer.

use super::{
    Cookie, Headers, Tables, cookie,
    layout::{Limit, NOTES, Settings, TARGETS},
};
use crate::{
    address::Address,
    layout::{Word, identity},
};

/// The time a bucket is to be given for one connection more; `None` when it owes too much already.
#[inline(always)]
fn spent(limit: &Limit, time: u64, now: u64) -> Option<u64> {
    let time = if time < now { now } else { time };
    if time.wrapping_sub(now) > limit.tolerance {
        None
    } else {
        Some(time.saturating_add(limit.interval))
    }
}

#[inline(always)]
fn take(limit: &Limit, bucket: &Word<u64>, now: u64) -> bool {
    match spent(limit, bucket.get(), now) {
        Some(time) => {
            bucket.set(time);
            true
        }
        None => false,
    }
}

/// One entry more of the counts by source; false when they come too fast on this CPU.
#[inline(always)]
pub(super) fn paced<T: Tables>(tables: &T, now: u64) -> bool {
    tables.pace().is_none_or(|bucket| take(&NOTES, &bucket, now))
}

/// Whom a source's connections are counted for: the IPv4 address, or the IPv6 /64, which is what one host is given.
#[inline(always)]
const fn host(source: &Address) -> Address {
    if source.is_v4() {
        *source
    } else {
        Address([source.0[0], source.0[1], 0, 0])
    }
}

/// One connection more of the source; false when that is too many.
#[inline(always)]
pub(super) fn source<T: Tables>(tables: &T, settings: &Settings, headers: &Headers, now: u64) -> bool {
    let source = host(&headers.source);
    if let Some(bucket) = tables.source(&source) {
        return take(&settings.source, &bucket, now);
    }
    tables.add_source(&source, now.saturating_add(settings.source.interval));
    true
}

/// One connection more of the source's identity, where it has one of its own; false when that is too many.
#[inline(always)]
pub(super) fn identity<T: Tables>(tables: &T, settings: &Settings, headers: &Headers, now: u64) -> bool {
    let identity = match tables.address(&headers.source) {
        Some(entry) => entry.identity,
        None => tables.network(&headers.source).map_or(0, |entry| entry.identity),
    };
    if identity < identity::FIRST_INTERNED {
        return true;
    }
    if let Some(bucket) = tables.identity(identity) {
        return take(&settings.identity, &bucket, now);
    }
    tables.add_identity(identity, now.saturating_add(settings.identity.interval));
    true
}

/// The number of the challenge that a SYN is answered with: its destination has been sent more than it may, and the
/// source has not shown that it is who it says.
#[inline(always)]
pub(super) fn challenged<T: Tables>(tables: &T, settings: &Settings, headers: &Headers, now: u64) -> Option<u32> {
    let group = cookie::group(settings.secret, &headers.destination, headers.destination_port);
    let bucket = tables.target((group & 0xffff_ffff) as u32 & TARGETS.wrapping_sub(1))?;
    if take(&settings.guard, &bucket, now) {
        return None;
    }
    if tables.known(&headers.source).is_some_and(|until| now < until) {
        return None;
    }
    Some(Cookie::new(settings.secret, headers).number(now))
}

/// True for the answer to a challenge, whose source is known from now on. A host that has just sent a SYN answers an
/// acknowledgement it does not expect with a reset that carries the acknowledged number (RFC 9293, 3.10.7.3), and sends
/// its SYN again. Whoever forges a source never sees the number.
#[inline(always)]
pub(super) fn proves<T: Tables>(tables: &T, settings: &Settings, headers: &Headers) -> bool {
    if !headers.resets() {
        return false;
    }
    let now = tables.now();
    if !Cookie::new(settings.secret, headers).accepts(headers.sequence, now) {
        return false;
    }
    let until = now.saturating_add(u64::from(settings.known_for).wrapping_mul(1_000_000_000));
    tables.add_known(&headers.source, until);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let limit = Limit::of(10, 1, 3);
        let bucket = Word::new(0);
        let second = 1_000_000_000;
        assert!((0..3).all(|_| take(&limit, &bucket, second)), "the burst");
        assert!(!take(&limit, &bucket, second), "no more");
        assert!(
            take(&limit, &bucket, second + second / 10),
            "one each tenth of a second"
        );
        assert!(!take(&limit, &bucket, second + second / 10));
        // Refusals cost nothing: after a second of rest the whole burst is there again.
        assert_eq!((0..9).filter(|_| take(&limit, &bucket, 3 * second)).count(), 3);
    }
}
