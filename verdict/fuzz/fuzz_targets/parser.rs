//! Any bytes: the parser ends, and what it says lies inside the packet.
#![no_main]

use bulkhead_verdict::{
    flow,
    host::Slice,
    layout::FlowKey,
    packet::{self, Fragment, Headers, Kind},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let slice = Slice {
        bytes,
        ifindex: 1,
        socket: false,
        tagged: false,
        answer: false,
        came_by: 0,
    };
    let mut headers = Headers::default();
    if packet::parse(&slice, &mut headers).is_err() {
        return;
    }
    assert!(
        bytes.len() >= packet::ETHERNET,
        "a packet shorter than Ethernet was read"
    );
    if headers.kind == Kind::Arp {
        return;
    }
    assert!(
        headers.end as usize <= bytes.len(),
        "ends behind the packet: {headers:?}"
    );
    assert!(
        headers.fragment == Fragment::Later || headers.transport <= headers.end,
        "{headers:?}"
    );
    // Turned around, it has the same key.
    let mut back = headers;
    (back.source, back.destination) = (headers.destination, headers.source);
    (back.source_port, back.destination_port) = (headers.destination_port, headers.source_port);
    let (mut key, mut back_key) = (FlowKey::default(), FlowKey::default());
    flow::key_of(&headers, 0, &mut key);
    flow::key_of(&back, 0, &mut back_key);
    assert_eq!(key, back_key);
    if headers.kind == Kind::IcmpError {
        let mut inner = Headers::default();
        if packet::embedded(&slice, &headers, &mut inner).is_some() {
            if inner.has_extensions() {
                packet::extensions(&slice, &mut inner);
            }
            let _read = packet::embedded_transport(&slice, &headers, &mut inner);
        }
    }
});
