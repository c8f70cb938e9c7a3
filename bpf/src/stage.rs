//! The stages of the decision as global functions: the verifier checks each one once, for any argument.

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use bulkhead_verdict::{Scratch, Stage};

use crate::{packet::Skb, state::Kernel};

macro_rules! stages {
    ($($name:ident = $stage:ident;)*) => {
        $(
            /// A stage; returns 0, as a global function must return a number.
            #[inline(never)]
            #[unsafe(no_mangle)]
            extern "C" fn $name(buffer: *mut __sk_buff, scratch: *mut Scratch) -> i32 {
                // SAFETY: copies a register to itself. A stage without need of the packet still takes it: the compiler must not hand
                // over garbage for it, because the verifier wants the context there.
                unsafe { asm!("{0} = {0}", inout(reg) buffer => _) };
                // SAFETY: the only caller is `call`, with a reference it does not use meanwhile. (The verifier does not
                // know that, and wants the pointer compared with null.)
                if let Some(scratch) = unsafe { scratch.as_mut() } {
                    Stage::$stage.run(&Skb { buffer }, &Kernel, scratch);
                }
                0
            }
        )*

        /// Runs a stage.
        #[inline(always)]
        pub(crate) fn call(buffer: *mut __sk_buff, scratch: &mut Scratch, stage: Stage) {
            match stage {
                $(Stage::$stage => { $name(buffer, scratch); })*
            }
        }
    };
}

stages! {
    bk_extensions = Extensions;
    bk_inner = InnerExtensions;
    bk_settle = Settle;
    bk_ends = Ends;
    bk_own = Own;
    bk_discover = Discover;
    bk_icmp_error = IcmpError;
    bk_by_rules = ByRules;
    bk_ask = Ask;
    bk_evaluate = Evaluate;
    bk_guard = Guard;
    bk_open = Open;
    bk_record = Record;
    bk_answer = Answer;
    bk_names = Names;
    bk_learn = Learn;
}
