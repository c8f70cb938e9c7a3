//! The few system calls that the standard library does not have. With `pinned`, the only unsafe code of the crate.
#![expect(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::{
    ffi::CString,
    fs::File,
    io,
    mem::size_of,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
};

/// True when the process is root, which namespaces and kernel programs need.
pub fn is_root() -> bool {
    // SAFETY: takes no argument and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Moves the calling thread into a network namespace.
///
/// # Errors
/// What setns(2) says; `EPERM` when not root.
pub fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call's duration; only this thread is concerned.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Makes a command start inside a network namespace, and die when the thread that starts it does.
pub fn start_inside(command: &mut Command, namespace: File) {
    // SAFETY: between fork and exec only two system calls run, both async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            enter(&namespace)
        });
    }
}

/// Makes a command die when the thread that starts it does.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only one system call runs, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)).map(drop));
    }
}

/// Sends a signal to a process that we started and have not waited for.
///
/// # Errors
/// `ESRCH` when it is gone.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: plain values.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Mounts a BPF file system.
///
/// # Errors
/// What mount(2) says.
pub fn mount_bpffs(target: &Path) -> io::Result<()> {
    let target = path(target)?;
    let kind = c"bpf";
    // SAFETY: all pointers are to live, terminated strings; the data argument may be null.
    check(unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) }).map(drop)
}

/// Unmounts a file system, at once for new users and for good when the last one leaves.
///
/// # Errors
/// What umount2(2) says; `EINVAL` when nothing is mounted there.
pub fn unmount(target: &Path) -> io::Result<()> {
    let target = path(target)?;
    // SAFETY: the pointer is to a live, terminated string.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Signals that end a program politely are from now on read from the descriptor returned (it is also readable by `poll`),
/// instead of ending the process. Call it before any thread is started.
///
/// # Errors
/// What signalfd(2) says.
pub fn catch_end_signals() -> io::Result<File> {
    // SAFETY: the set is a plain value that the two calls initialise before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut set))?;
        for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            check(libc::sigaddset(&raw mut set, number))?;
        }
        check(libc::pthread_sigmask(
            libc::SIG_BLOCK,
            &raw const set,
            std::ptr::null_mut(),
        ))?;
        let descriptor = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC))?;
        Ok(File::from(OwnedFd::from_raw_fd(descriptor)))
    }
}

/// Gives a command back the signals that [`catch_end_signals`] took (a child inherits the mask).
pub fn restore_end_signals(command: &mut Command) {
    // SAFETY: between fork and exec only sigprocmask runs, which is async-signal-safe, over a set it initialises.
    unsafe {
        command.pre_exec(|| {
            let mut set: libc::sigset_t = std::mem::zeroed();
            check(libc::sigemptyset(&raw mut set))?;
            check(libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const set,
                std::ptr::null_mut(),
            ))
            .map(drop)
        });
    }
}

/// A raw socket of one device that sends and sees whole frames.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens the socket on a device of the thread's namespace.
    ///
    /// # Errors
    /// `EPERM` when not root, `ENODEV` when there is no such device.
    pub fn open(device: &str) -> io::Result<Self> {
        let every_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be();
        let name = CString::new(device)?;
        // SAFETY: the name is a live, terminated string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: plain values; the descriptor returned is ours.
        let socket = unsafe {
            let descriptor = check(libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                i32::from(every_protocol),
            ))?;
            OwnedFd::from_raw_fd(descriptor)
        };
        // SAFETY: an all-zero address is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        address.sll_protocol = every_protocol;
        address.sll_ifindex = i32::try_from(index).unwrap_or_default();
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
        // SAFETY: the address lives for the call and its size is given.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
        Ok(Self(socket))
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// What send(2) says.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer lives for the call and its length is given.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Waits for the next frame, at most 100 ms; 0 bytes when none came.
    ///
    /// # Errors
    /// What recv(2) says.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live pollfd.
        if check(unsafe { libc::poll(&raw mut poll, 1, 100) })? == 0 {
            return Ok(0);
        }
        // SAFETY: the buffer lives for the call and its length is given.
        let received = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }
}

/// A raw ICMP socket, as a `std` UDP socket would be if there were one: it has the same calls.
///
/// # Errors
/// `EPERM` when not root.
pub fn icmp_socket(ipv6: bool) -> io::Result<std::net::UdpSocket> {
    let (family, protocol) = if ipv6 {
        (libc::AF_INET6, libc::IPPROTO_ICMPV6)
    } else {
        (libc::AF_INET, libc::IPPROTO_ICMP)
    };
    // SAFETY: plain values; the descriptor returned is ours, and `UdpSocket` only makes calls that any datagram socket has.
    unsafe {
        let descriptor = check(libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol))?;
        Ok(std::net::UdpSocket::from_raw_fd(descriptor))
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_encoded_bytes())?)
}
