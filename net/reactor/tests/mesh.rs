//! Two cores of one process: parcels both ways, and connections that one accepts and the other serves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "the other tests use more of it")]
mod common;
#[path = "common/echo.rs"]
mod echo;

use common::{SECOND, Scratch, each, listening, options};
use echo::echo;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use trilith_reactor::{CoreId, Event, GlommioPort, ListenerId, Port, Seat, Turn, run_seat, seats};

/// Longer than anything here takes; a client that waits in vain fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// A turn that takes much longer than any should.
const SLOW_TURN: Duration = Duration::from_millis(500);

/// Ends the process if its thread panics: the other core would wait for ever.
struct EndsAll;

impl Drop for EndsAll {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// Runs `first` on core 0 and `second` on core 1, `client` beside them; each core ends when its loop stops.
fn two_cores<H, C>(
    first: impl FnMut(&mut GlommioPort, Option<Event>) -> Turn,
    second: impl FnOnce() -> H + Send + 'static,
    client: C,
) where
    H: FnMut(&mut GlommioPort, Option<Event>) -> Turn,
    C: FnOnce(SocketAddr) + Send + 'static,
{
    let mut seats = seats(&[None, None]).unwrap();
    let run_second = |seat: Seat| {
        let _ends_all = EndsAll;
        let scratch = Scratch::new();
        run_seat(&options(&scratch.0), seat, |_| each(second())).unwrap()
    };
    let seat = seats.pop().unwrap();
    let other = thread::spawn(move || run_second(seat));
    let scratch = Scratch::new();
    let (tell, told) = mpsc::channel();
    let client = thread::spawn(move || {
        let _ends_all = EndsAll;
        client(told.recv().unwrap());
    });
    let make = |port: &mut GlommioPort| {
        tell.send(port.listener_address(ListenerId(0)).unwrap()).unwrap();
        each(first)
    };
    run_seat(&listening(&scratch.0), seats.pop().unwrap(), make).unwrap();
    other.join().unwrap();
    client.join().unwrap();
}

#[test]
fn parcels_arrive_in_order_however_many_there_are() {
    const COUNT: u32 = 20_000;
    let mut seen = 0;
    let first = move |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            // More than the other's queue holds, and no turn of it in between.
            None => (0..COUNT).for_each(|number| port.post(CoreId(1), Box::new(number))),
            Some(Event::Parcel { from, parcel }) => {
                assert_eq!((from, *parcel.downcast::<u32>().unwrap()), (CoreId(1), seen));
                seen += 1;
            }
            other => panic!("{other:?}"),
        }
        if seen == COUNT { Turn::Stop(0) } else { Turn::Continue }
    };
    let second = || {
        let (mut echoed, mut rest) = (0, Vec::new());
        move |port: &mut GlommioPort, event: Option<Event>| {
            match event {
                None => {}
                // Each turn of its own, so that the first core's queue fills, too.
                Some(Event::Parcel { parcel, .. }) => rest.push(*parcel.downcast::<u32>().unwrap()),
                Some(Event::Timer) => {}
                other => panic!("{other:?}"),
            }
            if echoed < rest.len() {
                port.post(CoreId(0), Box::new(rest[echoed]));
                echoed += 1;
            }
            if echoed < rest.len() || echoed < COUNT as usize {
                port.set_deadline(Some(port.now() + if echoed < rest.len() { 0 } else { SECOND }));
                return Turn::Continue;
            }
            Turn::Stop(0)
        }
    };
    two_cores(first, second, |_| {});
}

#[test]
fn the_last_parcels_of_a_core_wait_for_one_that_is_slow() {
    const COUNT: u32 = 100;
    let mut posted = 0;
    // A parcel a turn: soon more of them than the other's queue holds.
    let first = move |port: &mut GlommioPort, _: Option<Event>| {
        port.post(CoreId(1), Box::new(posted));
        posted += 1;
        port.set_deadline(Some(port.now()));
        if posted == COUNT { Turn::Stop(0) } else { Turn::Continue }
    };
    let second = || {
        let mut seen = 0;
        move |port: &mut GlommioPort, event: Option<Event>| {
            match event {
                None => {
                    thread::sleep(SLOW_TURN);
                    port.set_deadline(Some(port.now() + 20 * SECOND));
                }
                Some(Event::Parcel { parcel, .. }) => {
                    assert_eq!(*parcel.downcast::<u32>().unwrap(), seen);
                    seen += 1;
                }
                other => panic!("{other:?} after {seen} parcels"),
            }
            if seen == COUNT { Turn::Stop(0) } else { Turn::Continue }
        }
    };
    two_cores(first, second, |_| {});
}

#[test]
fn a_connection_is_served_by_the_core_it_is_given_to() {
    const CLIENTS: usize = 40;
    let (mut kept, mut given) = (echo(CLIENTS / 2), 0);
    let mut ids = BTreeSet::new();
    let mut closed = 0;
    let first = move |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            Some(Event::Accepted { listener, connection, .. }) if ids.len() < CLIENTS / 2 && given <= ids.len() => {
                given += 1;
                port.hand_over(connection, listener, CoreId(1));
            }
            Some(Event::Parcel { parcel, .. }) => {
                assert_eq!(*parcel.downcast::<usize>().unwrap(), CLIENTS / 2);
                closed += CLIENTS / 2;
            }
            event => {
                if let Some(Event::Accepted { connection, .. }) = &event {
                    ids.insert(*connection);
                }
                if let Turn::Stop(_) = kept(port, event) {
                    closed += CLIENTS / 2;
                }
            }
        }
        if closed == CLIENTS { Turn::Stop(0) } else { Turn::Continue }
    };
    let second = || {
        let mut echo = echo(CLIENTS / 2);
        move |port: &mut GlommioPort, event: Option<Event>| {
            if let Some(Event::Accepted { listener, connection, .. }) = &event {
                assert_eq!(*listener, ListenerId(0));
                assert_ne!(connection.0 & u64::from(u32::MAX), 0, "an id names its core, too");
            }
            let turn = echo(port, event);
            if turn != Turn::Continue {
                port.post(CoreId(0), Box::new(CLIENTS / 2));
            }
            turn
        }
    };
    two_cores(first, second, |address| {
        let mut streams: Vec<TcpStream> = (0..CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&[u8::try_from(number).unwrap(); 1000]).unwrap();
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            let mut got = [0; 1000];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(got, [u8::try_from(number).unwrap(); 1000]);
        }
    });
}
