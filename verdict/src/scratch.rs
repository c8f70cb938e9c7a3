//! The working memory of one decision.

use crate::{
    address::Address,
    answer::Answer,
    dns::message::Working,
    flow::Moment,
    layout::{EndpointWord, Flow, FlowKey},
    maps::Hook,
    packet::Headers,
    policy::Question,
    reason::Reason,
    record::Record,
    spoof::Owned,
};

/// Working memory of one decision. The caller's, because the kernel's stack is 512 bytes; what it holds between two
/// decisions does not matter.
#[repr(C)]
pub struct Scratch {
    pub(crate) headers: Headers,
    pub(crate) inner: Headers,
    pub(crate) key: FlowKey,
    pub(crate) moment: Moment,
    pub(crate) question: Question,
    pub(crate) record: Record,
    pub(crate) flow: Flow,
    pub(crate) answer: Answer,
    /// The hook.
    pub(crate) hook: Hook,
    /// The endpoint word as it was read.
    pub(crate) word: EndpointWord,
    /// An address, and whether it is the endpoint's own.
    pub(crate) asked: Address,
    pub(crate) own: bool,
    /// Which of the packet's addresses are.
    pub(crate) owned: Owned,
    /// What was wrong with the headers.
    pub(crate) refused: Option<Reason>,
    /// What the last stage concluded.
    pub(crate) reason: Reason,
    /// The connection asked about is the packet's own direction, not the one it answers.
    pub(crate) forward: bool,
    /// The source is the key's low end.
    pub(crate) source_is_low: bool,
    /// The flow that was found is in CONFIRMED.
    pub(crate) confirmed: bool,
    /// No flow of the packet's key was found when the decision began.
    pub(crate) unknown: bool,
    /// The flow was approved at this side by `builtin/node`; at an uplink by `builtin/forwarded`.
    pub(crate) was_node: bool,
    /// The endpoint is the node; written before [`crate::Stage::Settle`].
    pub(crate) host: bool,
    /// A message about names.
    pub dns: Working,
}

impl Scratch {
    /// Memory for one decision after the other.
    pub fn new() -> Self {
        Self {
            headers: Headers::default(),
            inner: Headers::default(),
            key: FlowKey::default(),
            moment: Moment::default(),
            question: Question::default(),
            record: Record::EMPTY,
            flow: Flow::default(),
            answer: Answer::NONE,
            hook: Hook::FromPod,
            word: EndpointWord::default(),
            asked: Address::UNSPECIFIED,
            own: false,
            owned: Owned::default(),
            refused: None,
            reason: Reason::MissingConfig,
            forward: true,
            source_is_low: false,
            confirmed: false,
            unknown: false,
            was_node: false,
            host: false,
            dns: Working::new(),
        }
    }
}

impl Scratch {
    /// What is to be sent in the packet's place; looked at only when that does not pass.
    #[inline(always)]
    pub const fn answer(&self) -> &Answer {
        &self.answer
    }

    /// The verdict that scratch memory read from the kernel (a per-CPU element of `BK_SCRATCH`) was left with; `None`
    /// when it is not of this build's size, or has a reason this build does not know.
    #[cfg(any(test, feature = "host"))]
    pub fn verdict_in(bytes: &[u8]) -> Option<crate::Verdict> {
        let rule = std::mem::offset_of!(Self, record).checked_add(std::mem::offset_of!(Record, rule))?;
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        Some(crate::Verdict {
            reason: Reason::from_number(*bytes.get(std::mem::offset_of!(Self, reason))?)?,
            rule: u32::from_ne_bytes(bytes.get(rule..)?.first_chunk::<4>().copied()?),
        })
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
