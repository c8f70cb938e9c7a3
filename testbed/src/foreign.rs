//! A stranger's program on a device: hands packets on to another one, as CNIs with an eBPF datapath do. Written by hand, in
//! instructions, so that it is nothing of ours.

use std::{io, net::Ipv4Addr, os::fd::OwnedFd};

use crate::pinned::{call, made, number, place};

const PROG_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const CLASSIFIER: u64 = 3;
/// `BPF_TCX_INGRESS`.
const TCX_INGRESS: u64 = 46;
/// `BPF_F_BEFORE`: ahead of all programs on the hook.
const BEFORE: u64 = 1 << 3;

/// How a packet is handed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// As if the device had been told to send it (`bpf_redirect`).
    Sent,
    /// Straight to the device's other end, behind the back of the device (`bpf_redirect_peer`).
    Peer,
}

impl Delivery {
    /// Number of the helper function.
    const fn helper(self) -> i32 {
        match self {
            Self::Sent => 23,
            Self::Peer => 155,
        }
    }
}

/// The program on its device, until this is dropped.
#[derive(Debug)]
pub struct Foreign {
    _link: OwnedFd,
}

impl Foreign {
    /// Puts a program before all others on what comes in by a device of the calling thread's namespace: IPv4 packets to an address are
    /// handed to another device, with a MAC address that is right there.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn redirect(on: u32, to: Ipv4Addr, delivery: Delivery, device: u32, mac: [u8; 6]) -> io::Result<Self> {
        let code = redirect(to, delivery, device, mac)?;
        let bytes: Vec<u8> = code.iter().flat_map(|instruction| instruction.to_le_bytes()).collect();
        let count = u64::try_from(code.len()).map_err(io::Error::other)?;
        let mut load = [0_u64; 9];
        let head = [CLASSIFIER | count << 32, place(&bytes), place(b"GPL\0")];
        for (word, value) in load.iter_mut().zip(head) {
            *word = value;
        }
        let program = made(call(PROG_LOAD, load)?)?;
        let attribute = [number(&program) | u64::from(on) << 32, TCX_INGRESS | BEFORE << 32, 0, 0];
        Ok(Self {
            _link: made(call(LINK_CREATE, attribute)?)?,
        })
    }
}

/// One instruction: operation, destination and source register, offset, immediate value.
fn instruction(operation: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([operation, to | from << 4, low, high, a, b, c, d])
}

fn redirect(to: Ipv4Addr, delivery: Delivery, device: u32, mac: [u8; 6]) -> io::Result<Vec<u64>> {
    let [m0, m1, m2, m3, m4, m5] = mac;
    let set = |register, value| instruction(0xb7, register, 0, 0, value);
    let copy = |register, from| instruction(0xbf, register, from, 0, 0);
    let call = |helper| instruction(0x85, 0, 0, 0, helper);
    let exit = instruction(0x95, 0, 0, 0, 0);
    // A 64-bit constant, because a 32-bit one is sign-extended before it is compared.
    let address = to.to_bits().cast_signed();
    let device = i32::try_from(device).map_err(io::Error::other)?;
    Ok(vec![
        copy(6, 1),
        // The EtherType; anything but IPv4 goes on.
        instruction(0x28, 0, 0, 0, 12),
        instruction(0x55, 0, 0, 17, 0x0800),
        // The destination.
        instruction(0x20, 0, 0, 0, 30),
        instruction(0x18, 1, 0, 0, address),
        0,
        instruction(0x5d, 0, 1, 13, 0),
        // The MAC address, by way of the stack.
        instruction(0x62, 10, 0, -8, i32::from_le_bytes([m0, m1, m2, m3])),
        instruction(0x6a, 10, 0, -4, i32::from_le_bytes([m4, m5, 0, 0])),
        copy(1, 6),
        set(2, 0),
        copy(3, 10),
        instruction(0x07, 3, 0, 0, -8),
        set(4, 6),
        set(5, 0),
        call(9),
        set(1, device),
        set(2, 0),
        call(delivery.helper()),
        exit,
        // TCX_NEXT.
        set(0, -1),
        exit,
    ])
}
