//! Why a packet passed or was dropped: numbered, public, append-only. The numbers are in flow records, metrics, the
//! CLI and on other people's disks, so a number is never given a second meaning.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why the verdict is what it is. Below [`Reason::FIRST_DROP`] the packet passes, from there on it is dropped.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $number,)* }

        impl Reason {
            /// Every reason in order of its number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The word used in flow records, metrics and the CLI.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            /// The reason of a number read from a map or a record; `None` for a number this build does not know.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Reason::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    // --- passes -----------------------------------------------------------------------------------------------
    /// A packet of a flow whose approval is still valid at this device.
    Established = 0, "established";
    /// A new flow, or a flow judged again, that a rule allows.
    Allowed = 1, "policy-allowed";
    /// A reply, judged again through the rule that allowed the flow it belongs to.
    ReplyAllowed = 2, "reply-allowed";
    /// `builtin/self`: a pod reaches itself.
    SelfTraffic = 3, "self";
    /// `builtin/node`: sent by a local socket of the node from a local node address.
    NodeTraffic = 4, "node";
    /// ARP with the endpoint's own addresses.
    Arp = 5, "arp";
    /// Neighbour or router discovery with the endpoint's own addresses.
    NeighbourDiscovery = 6, "neighbour-discovery";
    /// An ICMP error about a live flow that was seen at this device.
    RelatedError = 7, "related-icmp-error";
    /// Mid-stream TCP judged in both directions inside the adoption window.
    Adopted = 8, "adopted";
    /// A later fragment of a datagram whose first fragment passed.
    Fragment = 9, "fragment";
    /// A device of a pod that is not enforced (start gate open: a node that never had a snapshot).
    Unmanaged = 10, "unmanaged";
    /// A packet of a live flow that a rule denies now, whose policy lets live flows end (`Drain`) or go on (`Keep`).
    Kept = 11, "kept";
    /// The answer of a rule that rejects, on its way to who was refused.
    Answer = 12, "answer";
    /// At a device that leads out of the node: neither from nor to an address of the node's own. It is judged at its pod's device.
    Transit = 13, "transit";

    // --- drops: policy ----------------------------------------------------------------------------------------
    /// A rule denies it, or an isolating policy's default-deny does; the rule id says which.
    PolicyDenied = 64, "policy-denied";
    /// A live flow lost its permission: a changed policy or identity, or a lapsed guard. The first packet after that;
    /// the flow stays known, so later ones are `PolicyDenied` until it is allowed again or its idle time-out passes.
    Revoked = 65, "revoked";
    /// Mid-stream TCP, or an ICMP echo reply, that belongs to no known flow.
    MidStream = 66, "mid-stream";
    /// An ICMP error that refers to no live flow of this endpoint.
    UnrelatedError = 67, "unrelated-icmp-error";
    /// A fragment whose first fragment was not seen, was dropped, or that overlaps the transport header.
    FragmentOrphan = 68, "fragment-without-first";

    // --- drops: identity --------------------------------------------------------------------------------------
    /// The source address is not the endpoint's own.
    SpoofedAddress = 80, "spoofed-address";
    /// The source MAC is not the endpoint's own.
    SpoofedMac = 81, "spoofed-mac";
    /// An ARP packet claims an address or MAC that is not the endpoint's own.
    SpoofedArp = 82, "spoofed-arp";
    /// A neighbour-discovery packet claims an address or MAC that is not the endpoint's own, or is not a host's to send.
    SpoofedNeighbour = 83, "spoofed-neighbour-discovery";
    /// The destination of a packet towards a pod is not an address of that pod.
    WrongDestination = 84, "wrong-destination";

    // --- drops: the packet ------------------------------------------------------------------------------------
    /// Shorter than an Ethernet header.
    MalformedEthernet = 96, "malformed-ethernet";
    /// A wrong IPv4 header.
    MalformedIpv4 = 97, "malformed-ipv4";
    /// A wrong IPv6 header or extension header, or a source route that is not used up.
    MalformedIpv6 = 98, "malformed-ipv6";
    /// A cut or wrong transport header.
    MalformedTransport = 99, "malformed-transport";
    /// A wrong ARP packet.
    MalformedArp = 100, "malformed-arp";
    /// More IPv6 extension headers than are walked.
    ExtensionHeaders = 101, "too-many-extension-headers";
    /// An ethertype that is not IPv4, IPv6 or ARP, or a VLAN tag.
    UnknownEthertype = 102, "unknown-ethertype";

    // --- drops: our own state ---------------------------------------------------------------------------------
    /// The device carries our program, but no endpoint is known for it, or that endpoint has another device.
    UnknownEndpoint = 112, "unknown-endpoint";
    /// The endpoint's configuration is missing or torn down.
    MissingConfig = 113, "missing-config";
    /// The ruleset has no entry for the peer, not even for any address.
    MissingRuleset = 114, "missing-ruleset";
    /// The port set has no range for the port, or its search did not end within the bound.
    BrokenPortSet = 115, "broken-port-set";
    /// The list of alternatives is empty, unterminated, longer than the bound, or has a guard this build does not know.
    BrokenAlternatives = 116, "broken-alternatives";
    /// No room for a new flow; live flows are untouched.
    FlowTableFull = 117, "flow-table-full";
    /// The action of an alternative is not one this build knows.
    UnknownAction = 118, "unknown-action";
    /// The endpoint has more flows open that nobody answered than one endpoint may; live flows are untouched.
    FlowQuota = 119, "flow-quota";
    /// A segment of an answer to a query for names over TCP that came before one it follows. Names are learned in order, so it has to
    /// come again; TCP sees to that.
    NameEarly = 120, "early-name-segment";

    // --- drops: the uplink ------------------------------------------------------------------------------------
    /// The source is in a threat feed.
    ThreatFeed = 144, "threat-feed";
    /// The source opens more connections than one source may.
    SourceLimit = 145, "source-connection-limit";
    /// The source's identity opens more connections than one identity may.
    IdentityLimit = 146, "identity-connection-limit";
    /// A SYN above what its destination may be sent, from a source that has not shown yet that it is who it says: a
    /// challenge went back in its place.
    SynChallenged = 147, "syn-challenged";
    /// The answer to a challenge, which is for us alone; its source is known from here on.
    ChallengeAnswered = 148, "challenge-answered";
}

impl Reason {
    /// The smallest number that means a drop.
    pub const FIRST_DROP: u8 = 64;

    /// True for a reason of the uplink's program, which no program of a pod's device gives.
    #[inline(always)]
    pub const fn is_uplink(self) -> bool {
        matches!(self as u8, 144..=159)
    }

    /// True when the packet passes.
    #[inline(always)]
    pub const fn passes(self) -> bool {
        (self as u8) < Self::FIRST_DROP
    }
}
