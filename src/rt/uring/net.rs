//! TCP: listeners that the cores of a node share, and streams without a buffer of their own.
//!
//! Not used here, for what they do in glommio 0.9: read timeouts (they outlive an abandoned read)
//! and buffered streams (8 KiB for each idle connection).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};

use super::keepalive::keep_alive;
use super::{host, into_io};
use crate::error::{Error, Result};

/// How long [`reserve_ports`] waits for somebody to answer on a port that looks taken.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// So many ports are tried as the first of a free row.
const ROW_TRIES: usize = 500;

/// A listening socket, by SO_REUSEPORT one of several on its address. The kernel spreads
/// connections over them.
pub struct Listener(TcpListener);

impl Listener {
    /// Listens on `address`. An IPv6 wildcard takes IPv4 connections too.
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        TcpListener::bind(address).map(Listener).map_err(into_io)
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Stream> {
        self.0.accept().await.map(Stream::new).map_err(into_io)
    }
}

/// A connection. It reads straight into the caller's memory and holds none itself.
pub struct Stream(TcpStream);

impl Stream {
    fn new(stream: TcpStream) -> Stream {
        // It can fail only on a connection that is already gone, which the first read will tell.
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        Stream(stream)
    }

    /// Connects to `address`.
    pub async fn connect(address: SocketAddr) -> io::Result<Stream> {
        TcpStream::connect(address)
            .await
            .map(Stream::new)
            .map_err(into_io)
    }

    /// Reads at least one byte, or 0 at the end. Only readiness is awaited; the bytes are copied
    /// when they are there, so a read that is dropped has taken none.
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }

    /// Writes as much as there is room for. Only readiness is awaited.
    pub fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    /// Writes all of it.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// How many files this process has open at least, and how many it may have.
    pub fn open_files(&self) -> (u64, u64) {
        host::open_files_by(self.0.as_raw_fd())
    }

    /// The other side's address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.0.peer_addr().ok()
    }

    /// This side's address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// Sends the end of the stream.
    pub async fn shutdown(&mut self) {
        // It fails only if the connection is gone, and then there is nobody to tell.
        let _ = self.0.shutdown(Shutdown::Write).await;
    }
}

/// Asks the system for the address of a name, on a thread that may wait.
pub async fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let asked = (host.to_owned(), port);
    let find = move || asked.to_socket_addrs().map(|mut found| found.next());
    let found = glommio::executor().spawn_blocking(find).await?;
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The addresses that the cores are to listen on: `addresses`, or for those with port 0 ones with a
/// free port, no two with the same.
///
/// The cores' own sockets share ports, even with another server of the same user, so this is
/// where a taken port is found out.
///
/// A taken port is looked at again for a little while.
pub fn reserve_ports(addresses: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    let rows: Vec<(SocketAddr, u16)> = addresses.iter().map(|address| (*address, 1)).collect();
    reserve_rows(&rows)
}

/// The same for rows of ports, each with its first address and its length: all addresses, row by
/// row. A row that begins with port 0 is one of free ports that follow each other: who knows the
/// first knows all.
pub fn reserve_rows(rows: &[(SocketAddr, u16)]) -> Result<Vec<SocketAddr>> {
    super::when_freed(is_in_use, || {
        let mut held = Vec::new(); // lest one free port is found twice
        let mut reserved = Vec::new();
        for (first, length) in rows {
            match first.port() {
                0 => reserved.extend(try_any_row(*first, *length, &mut held)?),
                port => {
                    for port in (port..=u16::MAX).take(usize::from(*length)) {
                        let address = SocketAddr::new(first.ip(), port);
                        reserved.push(try_port(address, &mut held)?);
                    }
                }
            }
        }
        Ok(reserved)
    })
}

/// Free ports that follow each other.
fn try_any_row(
    any: SocketAddr,
    length: u16,
    held: &mut Vec<std::net::TcpListener>,
) -> Result<Vec<SocketAddr>> {
    for _ in 0..ROW_TRIES {
        let mut row = Vec::with_capacity(usize::from(length));
        let first = try_port(any, &mut row)?;
        let behind = |offset| {
            let port = first.port().checked_add(offset)?;
            std::net::TcpListener::bind(SocketAddr::new(any.ip(), port)).ok()
        };
        let rest: Option<Vec<_>> = (1..length).map(behind).collect();
        if let Some(rest) = rest {
            held.extend(row.into_iter().chain(rest));
            let ports = (0..length).map(|offset| first.port() + offset);
            return Ok(ports.map(|port| SocketAddr::new(any.ip(), port)).collect());
        }
    }
    let what = format!("{length} free ports in a row of {}", any.ip());
    let none = io::Error::from(io::ErrorKind::AddrInUse);
    Err(Error::io("listen on", std::path::Path::new(&what), none))
}

fn is_in_use(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
}

fn try_port(address: SocketAddr, held: &mut Vec<std::net::TcpListener>) -> Result<SocketAddr> {
    let probe = std::net::TcpListener::bind(address);
    let refused = match probe.and_then(|probe| Ok((probe.local_addr()?, probe))) {
        Ok((reserved, probe)) => {
            held.push(probe);
            return Ok(reserved);
        }
        Err(error) => error,
    };
    // Connections of a server that has just ended, in TIME_WAIT, keep this plain socket from
    // binding, but not those that share the port. If nobody answers there, it is free.
    if refused.kind() == io::ErrorKind::AddrInUse && address.port() != 0 && !answers(address) {
        return Ok(address);
    }
    let what = address.to_string();
    Err(Error::io("listen on", std::path::Path::new(&what), refused))
}

fn answers(address: SocketAddr) -> bool {
    let mut target = address;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => target.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => target.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    match std::net::TcpStream::connect_timeout(&target, ANSWER_MAX) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::ConnectionRefused,
    }
}
