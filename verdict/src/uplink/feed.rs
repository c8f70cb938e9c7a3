//! Looks a source address up in the feeds.

use super::{
    Tables,
    layout::{PrefixKey, SEVERAL, cell},
};
use crate::address::Address;

/// Class of an IPv6 /32, whose entry says what is below it.
const DIRECTORY: u32 = 8;

/// The feed an address is of, or 0.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, address: &Address) -> u8 {
    if address.is_v4() {
        v4(tables, u32::from_be(address.0[3]))
    } else {
        v6(tables, address)
    }
}

#[inline(always)]
fn v4<T: Tables>(tables: &T, address: u32) -> u8 {
    let (high, low) = (address >> 16, (address >> 8) & 0xff);
    if !tables.wide(high) || !tables.mark(high, low) {
        return 0;
    }
    match tables.cell(high, low) {
        cell::HOSTS => {}
        feed => return feed,
    }
    let Some((hosts, feed)) = tables.hosts(address >> 8, (address >> 5) & 7) else {
        return 0;
    };
    if hosts & (1 << (address & 31)) == 0 {
        return 0;
    }
    // A number this build cannot say is a drop all the same.
    if feed == 0 || feed > u32::from(SEVERAL) {
        SEVERAL
    } else {
        (feed & 0xff) as u8
    }
}

#[inline(always)]
fn v6<T: Tables>(tables: &T, address: &Address) -> u8 {
    let root = tables.root(u32::from_be(address.0[0]) >> 16);
    if root.feed != 0 {
        return (root.feed & 0xff) as u8;
    }
    let mut below = root.below;
    if below == 0 {
        return 0;
    }
    for class in 5..=32_u32 {
        if below & (1 << class.wrapping_sub(1)) == 0 {
            continue;
        }
        let Some(prefix) = tables.prefix(&PrefixKey::of(address, class)) else {
            continue;
        };
        if prefix.feed != 0 {
            return (prefix.feed & 0xff) as u8;
        }
        if class == DIRECTORY {
            below |= prefix.below;
        }
    }
    0
}
