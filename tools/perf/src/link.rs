//! A connection's non-blocking half: bytes that wait to be written, bytes that were read, and `poll` over several.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU64;

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use geminga_wire_pulsar::{Command, FrameRef, encode_simple, frame_size, peek_frame};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::client::Session;

/// Payloads up to this length are copied beside their header: cheaper than a segment of their own.
const COPY_LIMIT: usize = 4096;
/// Beyond this many bytes in the outbox, nothing more is put there.
const OUTBOX_HIGH: usize = 1 << 20;
const SEGMENTS_PER_WRITE: usize = 64;
const READ_BUFFER: usize = 512 * 1024;

enum Segment {
    /// The next bytes of the head buffer.
    Head(usize),
    Shared(Bytes),
}

/// What waits to be written.
#[derive(Default)]
pub(crate) struct Outbox {
    head: BytesMut,
    segments: VecDeque<Segment>,
    queued: usize,
}

impl Outbox {
    /// True if the socket should take some before more is added.
    pub(crate) fn is_full(&self) -> bool {
        self.queued >= OUTBOX_HIGH
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// Appends what `write` appends to the buffer.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.head.len();
        write(&mut self.head);
        let added = self.head.len() - before;
        self.queued += added;
        match self.segments.back_mut() {
            Some(Segment::Head(len)) => *len += added,
            _ => self.segments.push_back(Segment::Head(added)),
        }
    }

    /// Appends the first `len` bytes of `payload`, by reference if that is worth it.
    pub(crate) fn share(&mut self, payload: &Bytes, len: usize) {
        if len <= COPY_LIMIT {
            self.write(|head| head.extend_from_slice(&payload[..len]));
        } else {
            self.queued += len;
            self.segments.push_back(Segment::Shared(payload.slice(..len)));
        }
    }

    pub(crate) fn command(&mut self, command: impl Into<Command>) {
        let command = command.into();
        self.write(|head| encode_simple(&command, head));
    }

    #[cfg(test)]
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut head = self.head.as_ref();
        let parts = self.segments.iter().map(|segment| match segment {
            Segment::Head(len) => head.split_off(..*len).unwrap_or_default(),
            Segment::Shared(bytes) => bytes,
        });
        parts.collect::<Vec<_>>().concat()
    }

    fn write_once(&self, stream: &mut TcpStream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SEGMENTS_PER_WRITE];
        let mut head = self.head.as_ref();
        let mut used = 0;
        for (slot, segment) in slices.iter_mut().zip(&self.segments) {
            *slot = IoSlice::new(match segment {
                Segment::Head(len) => head.split_off(..*len).unwrap_or_default(),
                Segment::Shared(bytes) => bytes,
            });
            used += 1;
        }
        stream.write_vectored(&slices[..used])
    }

    fn consume(&mut self, mut written: usize) {
        self.queued -= written;
        while written > 0 {
            let Some(front) = self.segments.front_mut() else {
                return;
            };
            let (len, taken) = match front {
                Segment::Head(len) => {
                    let taken = written.min(*len);
                    self.head.advance(taken);
                    *len -= taken;
                    (*len, taken)
                }
                Segment::Shared(bytes) => {
                    let taken = written.min(bytes.len());
                    bytes.advance(taken);
                    (bytes.len(), taken)
                }
            };
            written -= taken;
            if len == 0 {
                self.segments.pop_front();
            }
        }
    }
}

/// A receive buffer whose memory is initialised once.
struct Inbox {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    fn new(first: &[u8]) -> Self {
        let mut buf = vec![0; READ_BUFFER.max(first.len())];
        buf[..first.len()].copy_from_slice(first);
        Self { buf, start: 0, end: first.len() }
    }

    /// Room for the rest of the frame that has begun, and for much if none has.
    fn make_room(&mut self, max_frame: usize) -> Result<()> {
        let pending = self.end - self.start;
        let frame = frame_size(&self.buf[self.start..self.end], max_frame)?.unwrap_or(0);
        let wanted = frame.max(pending + READ_BUFFER / 4);
        if self.start + wanted > self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            self.start = 0;
            self.end = pending;
            if wanted > self.buf.len() {
                self.buf.resize(wanted, 0);
            }
        }
        Ok(())
    }
}

/// A connection driven by [`poll`].
pub(crate) struct Link {
    stream: TcpStream,
    inbox: Inbox,
    max_frame: usize,
    pub(crate) out: Outbox,
}

impl Link {
    pub(crate) fn new(session: Session) -> Result<Self> {
        session.stream.set_nonblocking(true)?;
        let max_frame = session.max_frame();
        Ok(Self { stream: session.stream, inbox: Inbox::new(&session.received), max_frame, out: Outbox::default() })
    }

    /// Writes until the socket takes no more or nothing is left.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while !self.out.is_empty() {
            match self.out.write_once(&mut self.stream) {
                Ok(0) => bail!("the broker closed the connection"),
                Ok(written) => self.out.consume(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("the connection was lost"),
            }
        }
        Ok(())
    }

    /// Reads what is there, up to a bound; answers PING; gives each other frame to `handle`, together with the outbox.
    pub(crate) fn receive(&mut self, mut handle: impl FnMut(FrameRef<'_>, &mut Outbox) -> Result<()>) -> Result<()> {
        self.inbox.make_room(self.max_frame)?;
        match self.stream.read(&mut self.inbox.buf[self.inbox.end..]) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(n) => self.inbox.end += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return Err(error).context("the connection was lost"),
        }
        let inbox = &mut self.inbox;
        while let Some(frame) = peek_frame(&inbox.buf[inbox.start..inbox.end], self.max_frame)? {
            inbox.start += frame.size;
            match frame.command {
                Command::Ping(_) => self.out.command(geminga_wire_pulsar::proto::CommandPong {}),
                Command::Pong(_) => {}
                _ => handle(frame, &mut self.out)?,
            }
        }
        Ok(())
    }
}

/// Waits up to `timeout_ns` for any link to be readable, or writable if it has something to write. `readable[i]` then says
/// whether link `i` can be read.
pub(crate) fn poll(links: &[Link], timeout_ns: u64, readable: &mut Vec<bool>) -> Result<()> {
    let mut fds: Vec<PollFd<'_>> = links
        .iter()
        .map(|link| {
            let flags = if link.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            PollFd::new(&link.stream, flags)
        })
        .collect();
    let timeout = Timespec { tv_sec: (timeout_ns / 1_000_000_000) as i64, tv_nsec: (timeout_ns % 1_000_000_000) as _ };
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("poll"),
    }
    readable.clear();
    readable.extend(fds.iter().map(|fd| fd.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)));
    Ok(())
}

/// Lets this thread's timeouts be exact to a microsecond; the kernel's default is 50.
pub(crate) fn sharpen_timers() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_outbox_keeps_the_order_of_copied_and_shared_bytes_through_partial_writes() {
        let payload = Bytes::from((0..COPY_LIMIT + 100).map(|i| i as u8).collect::<Vec<_>>());
        let mut out = Outbox::default();
        let mut expected = Vec::new();
        for round in 0..50u8 {
            out.write(|head| head.extend_from_slice(&[round; 30]));
            expected.extend_from_slice(&[round; 30]);
            let len = if round % 3 == 0 { 10 } else { payload.len() };
            out.share(&payload, len);
            expected.extend_from_slice(&payload[..len]);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            receiver.read_to_end(&mut all).unwrap();
            all
        });
        while !out.is_empty() {
            let written = out.write_once(&mut sender).unwrap();
            out.consume(written);
        }
        drop(sender);
        assert!(reader.join().unwrap() == expected);
        assert!(out.segments.is_empty() && out.head.is_empty());
    }
}
