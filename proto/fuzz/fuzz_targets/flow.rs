//! Any bytes as a request for flows and a flow: parsing filters and asking them never panics.
#![no_main]

use bulkhead_proto::{filter::Filters, v1};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first() else { return };
    let (request, flow) = rest.split_at(usize::from(*length).min(rest.len()));
    let Ok(request) = v1::GetFlowsRequest::decode(request) else { return };
    let Ok(filters) = Filters::parse(&request) else { return };
    let Ok(flow) = v1::Flow::decode(flow) else { return };
    let wanted = filters.matches(&flow);
    assert!(wanted || !request.filters.is_empty(), "no filter wants everything");
});
