//! Names: answers that teach addresses, and answers that must not.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Range,
};

use super::{
    Vector,
    world::{A, B, DEFAULT_DENY, EGRESS, Net, Story, World, allow, by_a, by_b, deny, nets, who},
};
use crate::{
    dns::{
        reversed_name,
        stream::EARLY_MAX,
        table::{MemberKey, PatternEntry},
    },
    host::{
        dns::{self, Message, Record},
        frame::{Frame, frame},
    },
    layout::{Alternative, guard},
    packet::tcp::{ACK, RST, SYN},
    reason::Reason,
};

/// Set of names that rule 501 asks for.
const SET: u32 = 8;
/// Port of the query.
const PORT: u16 = 40_001;
/// Id of the query.
const ID: u16 = 0x1234;

/// A and B may ask C, and whoever is behind `api.example.com`, `*.shop.test` and `**.deep.test`.
pub fn named() -> World {
    let mut world = World::closed();
    for pod in [A, B] {
        let egress = EGRESS.saturating_add(pod);
        world.entry(egress, who::C, &[allow(600)]);
        world.entry(
            egress,
            who::OUTSIDE,
            &[
                Alternative {
                    guard: guard::NAME,
                    argument: SET,
                    ..allow(501)
                },
                deny(502),
            ],
        );
    }
    world.naming.enabled = 1;
    world.naming.max_ttl = 86_400;
    for (domain, exact, child, deeper) in [
        ("api.example.com", 11, 0, 0),
        ("shop.test", 0, 12, 0),
        ("deep.test", 0, 13, 13),
        ("unasked.test", 14, 14, 14),
    ] {
        let name = reversed_name(domain).unwrap_or_default();
        let entry = PatternEntry {
            exact,
            child,
            deeper,
            ..PatternEntry::of_length(name.len())
        };
        world.patterns.push((name, entry));
    }
    world
        .members
        .extend([11, 12, 13].map(|class| MemberKey { class, set: SET }));
    world
}

fn kind(net: &Net) -> u16 {
    if net.a.is_ipv4() { dns::A } else { dns::AAAA }
}

fn query(net: &Net, name: &str) -> Message {
    Message::query(ID, name, kind(net))
}

fn asked(net: &Net) -> Frame {
    by_a(net, net.c).udp(PORT, 53)
}

fn answered(net: &Net) -> Frame {
    frame(net.c, net.a).udp(53, PORT)
}

fn connect(net: &Net, port: u16) -> Vec<u8> {
    by_a(net, net.outside).tcp(port, 443, SYN).build()
}

/// A story in which A asks for a name and is told something.
fn told(net: &Net, what: &str, name: &str, answer: Vec<u8>, learned: bool) -> Vector {
    let (reason, rule) = if learned {
        (Reason::Allowed, 501)
    } else {
        (Reason::PolicyDenied, 502)
    };
    Story::new(format!("names: {what}, {}", net.name), named())
        .from(A, connect(net, 1), Reason::PolicyDenied, 502)
        .from(A, query(net, name).in_frame(asked(net)), Reason::Allowed, 600)
        .to(A, answer, Reason::Established, 600)
        .from(A, connect(net, 2), reason, rule)
        .end()
}

pub(super) fn vectors() -> Vec<Vector> {
    nets()
        .iter()
        .flat_map(|net| {
            let mut list = right(net);
            list.extend(wrong(net));
            list.extend(several(net));
            list.extend(over_tcp(net));
            list.extend(in_pieces(net));
            list
        })
        .collect()
}

fn address(net: &Net) -> Record {
    Record::address(net.outside, 60)
}

/// Answers that teach.
fn right(net: &Net) -> Vec<Vector> {
    let one = |what: &str, name: &str, answers: Vec<Record>| {
        let answer = query(net, name).answer(answers).in_frame(answered(net));
        told(net, what, name, answer, true)
    };
    let many = (0..100).map(|last| Record::address(IpAddr::V4(Ipv4Addr::new(203, 0, 113, last)), 60));
    vec![
        one("an answer", "api.example.com", vec![address(net)]),
        one("another case", "aPi.EXAMPLE.com", vec![address(net)]),
        one("a wildcard", "www.shop.test", vec![address(net)]),
        one("a deep wildcard", "a.b.c.deep.test", vec![address(net)]),
        one(
            "many addresses",
            "api.example.com",
            many.chain([address(net)]).collect(),
        ),
        one(
            "aliases",
            "api.example.com",
            vec![
                Record::alias("", "edge.cdn.test", 30),
                Record::alias("edge.cdn.test", "e7.cdn.test", 30),
                Record {
                    owner: "e7.cdn.test".to_owned(),
                    ..address(net)
                },
            ],
        ),
    ]
}

/// Answers that must not.
fn wrong(net: &Net) -> Vec<Vector> {
    let name = "api.example.com";
    let right = || query(net, name).answer(vec![address(net)]);
    let one = |what: &str, answer: Message| told(net, what, name, answer.in_frame(answered(net)), false);
    let unmatched = |what: &str, name: &str| {
        let answer = query(net, name).answer(vec![address(net)]).in_frame(answered(net));
        told(net, what, name, answer, false)
    };
    let with = |change: &dyn Fn(&mut Message)| {
        let mut message = right();
        change(&mut message);
        message
    };
    let record = |change: &dyn Fn(&mut Record)| {
        let mut record = address(net);
        change(&mut record);
        query(net, name).answer(vec![record])
    };
    let other_kind = if net.a.is_ipv4() { dns::AAAA } else { dns::A };
    vec![
        unmatched("a name no rule mentions", "evil.test"),
        unmatched("a wildcard's own domain", "shop.test"),
        unmatched("two labels below a wildcard", "a.b.shop.test"),
        unmatched("a domain that ends alike", "xshop.test"),
        unmatched("a name below an exact one", "x.api.example.com"),
        unmatched("a name of another rule", "unasked.test"),
        one("a wrong id", with(&|message| message.id = ID + 1)),
        one(
            "another question",
            with(&|message| "www.shop.test".clone_into(&mut message.name)),
        ),
        one("another type", with(&|message| message.kind = other_kind)),
        one("another class", with(&|message| message.class = 3)),
        one("a query as an answer", with(&|message| message.flags = 0x0100)),
        one("a truncated answer", with(&|message| message.flags |= 0x0200)),
        one("no such name", with(&|message| message.flags |= 3)),
        one("two questions", with(&|message| message.questions = 2)),
        one("more answers than there are", with(&|message| message.stated = Some(2))),
        one("a short address", record(&|record| record.data.truncate(3))),
        one("another class of address", record(&|record| record.class = 3)),
        one(
            "a label of another kind",
            record(&|record| "x".repeat(130).clone_into(&mut record.owner)),
        ),
        told(
            net,
            "half a message",
            name,
            {
                let mut bytes = right().bytes();
                bytes.truncate(bytes.len().saturating_sub(9));
                dns::payload(answered(net), &bytes)
            },
            false,
        ),
        told(
            net,
            "an answer in fragments",
            name,
            right().in_frame(answered(net).fragment(7, 0, true)),
            false,
        ),
    ]
}

/// Stories of more than one answer, and over TCP.
fn several(net: &Net) -> Vec<Vector> {
    let name = "api.example.com";
    let query = query(net, name);
    let answer = query.answer(vec![address(net)]);
    let story = |what: &str, world: World| Story::new(format!("names: {what}, {}", net.name), world);
    let other_server = frame(net.b, net.a).udp(53, PORT);
    let mut off = named();
    off.naming.enabled = 0;
    vec![
        story("names switched off", off)
            .from(A, query.in_frame(asked(net)), Reason::Allowed, 600)
            .to(A, answer.in_frame(answered(net)), Reason::Established, 600)
            .from(A, connect(net, 2), Reason::PolicyDenied, 502)
            .end(),
        story("an answer without a query", named())
            .from(A, asked(net).payload(20).build(), Reason::Allowed, 600)
            .to(A, answer.in_frame(answered(net)), Reason::Established, 600)
            .from(A, connect(net, 2), Reason::PolicyDenied, 502)
            .end(),
        story("an answer of another server", named())
            .from(A, query.in_frame(asked(net)), Reason::Allowed, 600)
            .to(A, answer.in_frame(other_server), Reason::PolicyDenied, DEFAULT_DENY)
            .from(A, connect(net, 2), Reason::PolicyDenied, 502)
            .end(),
        story("a second answer", named())
            .from(A, query.in_frame(asked(net)), Reason::Allowed, 600)
            .to(
                A,
                query.answer(vec![]).in_frame(answered(net)),
                Reason::Established,
                600,
            )
            .to(A, answer.in_frame(answered(net)), Reason::Established, 600)
            .from(A, connect(net, 2), Reason::PolicyDenied, 502)
            .end(),
        story("an answer to another port", named())
            .from(A, query.in_frame(asked(net)), Reason::Allowed, 600)
            .from(
                A,
                asked(net).udp(PORT + 1, 53).payload(20).build(),
                Reason::Allowed,
                600,
            )
            .to(
                A,
                answer.in_frame(frame(net.c, net.a).udp(53, PORT + 1)),
                Reason::Established,
                600,
            )
            .from(A, connect(net, 2), Reason::PolicyDenied, 502)
            .end(),
        story("what one pod learned is not another's", named())
            .from(A, query.in_frame(asked(net)), Reason::Allowed, 600)
            .to(A, answer.in_frame(answered(net)), Reason::Established, 600)
            .from(
                B,
                by_b(net, net.outside).tcp(2, 443, SYN).build(),
                Reason::PolicyDenied,
                502,
            )
            .from(A, connect(net, 2), Reason::Allowed, 501)
            .end(),
    ]
}

/// Answers over TCP.
fn over_tcp(net: &Net) -> Vec<Vector> {
    let query = query(net, "api.example.com");
    let answer = query.answer(vec![address(net)]);
    let story = |what: &str| Story::new(format!("names: {what}, {}", net.name), named());
    vec![
        story("an answer over TCP")
            .from(A, by_a(net, net.c).tcp(PORT, 53, SYN).build(), Reason::Allowed, 600)
            .to(
                A,
                frame(net.c, net.a).tcp(53, PORT, SYN | ACK).build(),
                Reason::Established,
                600,
            )
            .from(
                A,
                query.in_segment(by_a(net, net.c).tcp(PORT, 53, ACK)),
                Reason::Established,
                600,
            )
            .to(
                A,
                answer.in_segment(frame(net.c, net.a).tcp(53, PORT, ACK)),
                Reason::Established,
                600,
            )
            .from(A, connect(net, 2), Reason::Allowed, 501)
            .end(),
        story("an answer over TCP to a query over UDP")
            .from(A, query.in_frame(asked(net)), Reason::Allowed, 600)
            .from(A, by_a(net, net.c).tcp(PORT, 53, SYN).build(), Reason::Allowed, 600)
            .to(
                A,
                frame(net.c, net.a).tcp(53, PORT, SYN | ACK).build(),
                Reason::Established,
                600,
            )
            .to(
                A,
                answer.in_segment(frame(net.c, net.a).tcp(53, PORT, ACK)),
                Reason::Established,
                600,
            )
            .from(A, connect(net, 2), Reason::PolicyDenied, 502)
            .end(),
        story("half an answer over TCP")
            .from(A, by_a(net, net.c).tcp(PORT, 53, SYN).build(), Reason::Allowed, 600)
            .to(
                A,
                frame(net.c, net.a).tcp(53, PORT, SYN | ACK).build(),
                Reason::Established,
                600,
            )
            .from(
                A,
                query.in_segment(by_a(net, net.c).tcp(PORT, 53, ACK)),
                Reason::Established,
                600,
            )
            .to(
                A,
                answer.in_frame(frame(net.c, net.a).tcp(53, PORT, ACK)),
                Reason::Established,
                600,
            )
            .from(A, connect(net, 2), Reason::PolicyDenied, 502)
            .end(),
    ]
}

/// Where A's connection to the server begins: what the query acknowledges, and the answer's first byte.
const BEGIN: u32 = 0xffff_fff0;

/// A conversation over TCP in which A has asked for a name, and is told it in pieces.
struct Pieces<'a> {
    net: &'a Net,
    query: Message,
    /// The answer as it is in the stream; its last address is the outsider's.
    bytes: Vec<u8>,
}

impl<'a> Pieces<'a> {
    fn new(net: &'a Net) -> Self {
        let query = query(net, "api.example.com");
        let many = (0..100).map(|last| Record::address(IpAddr::V4(Ipv4Addr::new(203, 0, 113, last)), 60));
        let bytes = query.answer(many.chain([address(net)]).collect()).with_length();
        Self { net, query, bytes }
    }

    /// A asks; the answer will begin at a number.
    fn asks(&self, story: Story, begin: u32) -> Story {
        let net = self.net;
        let query = by_a(net, net.c).tcp(PORT, 53, ACK).numbered(1, begin);
        story
            .from(A, by_a(net, net.c).tcp(PORT, 53, SYN).build(), Reason::Allowed, 600)
            .to(
                A,
                frame(net.c, net.a).tcp(53, PORT, SYN | ACK).build(),
                Reason::Established,
                600,
            )
            .from(A, self.query.in_segment(query), Reason::Established, 600)
    }

    fn story(&self, what: &str) -> Story {
        self.asks(Story::new(format!("names: {what}, {}", self.net.name), named()), BEGIN)
    }

    fn passes(&self, story: Story, range: Range<usize>) -> Story {
        story.to(A, self.part(range), Reason::Established, 600)
    }

    fn early(&self, story: Story, range: Range<usize>) -> Story {
        story.to(A, self.part(range), Reason::NameEarly, 600)
    }

    fn part(&self, range: Range<usize>) -> Vec<u8> {
        piece(self.net, range.start, self.bytes.get(range).unwrap_or_default())
    }

    fn learned(&self, story: Story) -> Vector {
        story.from(A, connect(self.net, 2), Reason::Allowed, 501).end()
    }

    fn not_learned(&self, story: Story) -> Story {
        story.from(A, connect(self.net, 9), Reason::PolicyDenied, 502)
    }
}

/// A segment of the server's, with so many bytes of its stream in front.
fn piece(net: &Net, before: usize, bytes: &[u8]) -> Vec<u8> {
    let sequence = BEGIN.wrapping_add(u32::try_from(before).unwrap_or(u32::MAX));
    dns::payload(frame(net.c, net.a).tcp(53, PORT, ACK).numbered(sequence, 1), bytes)
}

/// Answers over TCP in more than one segment, across the end of the sequence numbers.
fn in_pieces(net: &Net) -> Vec<Vector> {
    let all = Pieces::new(net);
    let length = all.bytes.len();
    let in_order = [0..1, 1..2, 2..9, 9..700, 700..length]
        .into_iter()
        .fold(all.story("an answer over TCP in pieces"), |story, range| {
            all.passes(story, range)
        });
    let waits = all.passes(all.story("a piece that comes too early waits"), 0..500);
    let waits = all.not_learned(all.early(waits, 900..length));
    let waits = all.passes(all.passes(waits, 500..900), 900..length);
    let twice = [0..500, 0..500, 100..400, 300..800, 0..800, 700..length]
        .into_iter()
        .fold(all.story("pieces that come twice and overlap"), |story, range| {
            all.passes(story, range)
        });
    let begun = all.passes(
        all.story("a piece that never comes is not waited for without end"),
        0..500,
    );
    let given_up = (0..EARLY_MAX).fold(begun, |story, _| all.early(story, 900..length));
    let given_up = all.passes(given_up, 900..length);
    let two = [all.bytes.clone(), all.bytes.clone()].concat();
    let two = all
        .story("two answers in a segment")
        .to(A, piece(net, 0, &two), Reason::Established, 600);
    let nobodys = all.story("a segment beyond all windows is nobody's").to(
        A,
        piece(net, 1 << 21, &all.bytes),
        Reason::Established,
        600,
    );
    let reset = by_a(net, net.c).tcp(PORT, 53, RST | ACK).build();
    let again = all
        .story("a port that is used again")
        .from(A, reset, Reason::Established, 600);
    let answer = dns::payload(frame(net.c, net.a).tcp(53, PORT, ACK).numbered(77, 1), &all.bytes);
    let again = all.asks(again, 77).to(A, answer, Reason::Established, 600);
    let half = all.passes(all.story("half an answer in pieces"), 0..700);
    vec![
        all.learned(in_order),
        all.learned(waits),
        all.learned(twice),
        all.not_learned(given_up).end(),
        all.not_learned(two).end(),
        all.learned(all.passes(nobodys, 0..length)),
        all.learned(again),
        all.not_learned(half).end(),
    ]
}
