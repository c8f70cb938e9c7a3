//! The number of a challenge: a keyed hash (SipHash-2-4) of who asks whom and when, so that nothing has to be remembered
//! of a SYN, and nobody who does not see our answers can know it.

use super::Headers;
use crate::address::Address;

/// Nanoseconds a number is made of the same time; it is accepted for up to twice as long.
const PERIOD: u64 = 16_000_000_000;

/// What a number is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cookie {
    secret: [u64; 2],
    source: Address,
    destination: Address,
    /// Source port, then destination port, as in the packet.
    ports: u32,
}

impl Cookie {
    /// Of the packet that asks, or answers.
    #[inline(always)]
    pub const fn new(secret: [u64; 2], headers: &Headers) -> Self {
        Self {
            secret,
            source: headers.source,
            destination: headers.destination,
            ports: (headers.source_port as u32) << 16 | headers.destination_port as u32,
        }
    }

    /// The number at a time.
    #[inline(always)]
    pub fn number(&self, now: u64) -> u32 {
        self.of(period(now))
    }

    /// True for the number of this period or the one before.
    #[inline(always)]
    pub fn accepts(&self, number: u32, now: u64) -> bool {
        let period = period(now);
        number == self.of(period) || number == self.of(period.wrapping_sub(1))
    }

    #[inline(always)]
    fn of(&self, period: u64) -> u32 {
        let mut hash = Hash::new(self.secret);
        hash.address(&self.source);
        hash.address(&self.destination);
        hash.word(u64::from(self.ports) << 32 | (period & 0xffff_ffff));
        (hash.end() & 0xffff_ffff) as u32
    }
}

#[inline(always)]
fn period(now: u64) -> u64 {
    now.checked_div(PERIOD).unwrap_or(0)
}

/// The guard's group of a destination.
#[inline(always)]
pub(super) fn group(secret: [u64; 2], destination: &Address, port: u16) -> u64 {
    let mut hash = Hash::new(secret);
    hash.address(destination);
    hash.word(port.into());
    hash.end()
}

/// SipHash-2-4 over whole words; every message here has a fixed length, so its length is no part of it.
struct Hash {
    v: [u64; 4],
}

impl Hash {
    #[inline(always)]
    const fn new(secret: [u64; 2]) -> Self {
        let [k0, k1] = secret;
        Self {
            v: [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ],
        }
    }

    #[inline(always)]
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.v;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.v = [a, b, c, d];
    }

    #[inline(always)]
    fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }

    #[inline(always)]
    fn address(&mut self, address: &Address) {
        let [a, b, c, d] = address.0;
        self.word(u64::from(b) << 32 | u64::from(a));
        self.word(u64::from(d) << 32 | u64::from(c));
    }

    #[inline(always)]
    fn end(mut self) -> u64 {
        self.v[2] ^= 0xff;
        for _ in 0..4 {
            self.round();
        }
        let [a, b, c, d] = self.v;
        a ^ b ^ c ^ d
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of `SipHash`'s authors for the key 00 … 0f and the message 00 … 0e. Its last block ends in the length, 15,
    /// which is what our messages leave out and is given here as part of the word.
    #[test]
    fn it_is_siphash() {
        let mut hash = Hash::new([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        hash.word(0x0706_0504_0302_0100);
        hash.word(0x0f0e_0d0c_0b0a_0908);
        assert_eq!(hash.end(), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn a_number_is_of_one_tuple_and_one_time() {
        let headers = Headers {
            source: Address::from_v4_word(1),
            destination: Address::from_v4_word(2),
            source_port: 3,
            destination_port: 4,
            ..Headers::default()
        };
        let cookie = Cookie::new([5, 6], &headers);
        let now = 100 * PERIOD;
        let number = cookie.number(now);
        assert!(cookie.accepts(number, now) && cookie.accepts(number, now + PERIOD));
        assert!(!cookie.accepts(number, now + 2 * PERIOD) && !cookie.accepts(number, now - 1));
        for other in [
            Headers {
                source_port: 7,
                ..headers
            },
            Headers {
                destination_port: 7,
                ..headers
            },
            Headers {
                source: Address::from_v4_word(7),
                ..headers
            },
            Headers {
                destination: Address::from_v4_word(7),
                ..headers
            },
        ] {
            assert!(!Cookie::new([5, 6], &other).accepts(number, now));
        }
        assert!(!Cookie::new([6, 5], &headers).accepts(number, now));
    }
}
