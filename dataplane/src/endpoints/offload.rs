//! Whether a device merges packets it receives before anything else sees them (`ETHTOOL_GGRO`, ethtool(8) `gro`).
#![expect(unsafe_code, reason = "ioctl(2) with a pointer in its argument")]

use std::{io, os::fd::AsRawFd};

const ETHTOOL_GGRO: u32 = 0x2b;
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` with a pointer, as long as the kernel copies.
#[repr(C)]
struct Request {
    name: [u8; 16],
    data: *mut Value,
    rest: [u64; 2],
}

/// Of a device of the calling thread's namespace.
pub(super) fn merges(name: &str) -> io::Result<bool> {
    let mut value = Value {
        command: ETHTOOL_GGRO,
        data: 0,
    };
    let mut request = Request {
        name: [0; 16],
        data: &raw mut value,
        rest: [0; 2],
    };
    // The last byte stays zero.
    for (to, from) in request.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("[::]:0"))?;
    // SAFETY: both structures live for the call, and the kernel writes no more than `value`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    match (result, io::Error::last_os_error()) {
        (0, _) => Ok(value.data != 0),
        (_, error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        (_, error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        // Loopback has it on, like every device that says nothing else.
        assert!(merges("lo").unwrap());
        assert!(!merges("no-such-device").unwrap());
    }
}
