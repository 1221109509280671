//! Clients that run transactions over all cores, and what must hold between them.
//!
//! - Tickets: a transaction raises some counters and gets their numbers, so that the numbers say in
//!   which order the transactions came; it also writes a mark of its own on two keys of its own.
//!   All orders together, with the clock's, must fit (strict serializability); after a restart each
//!   has both of its marks or neither, and each counter has the number of those that raised it. If a
//!   client is told that nobody knows whether its transaction holds, then what a reader says of its
//!   marks is so after a restart, too.
//! - Banking: money moves between accounts, with WATCH or without; their sum never changes.
//! - Banners: MSET writes one value to all of some keys, so that MGET never sees two.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quoit::rt;

use crate::checkers::{Moment, Order};
use crate::cluster::{Client, Reply, Request, Verdict, request};

const COUNTERS: usize = 6;
const ACCOUNTS: usize = 5;
const BANNERS: usize = 5;
const DEPOSIT: i64 = 1000;
/// A banner's filling, so that a transaction may take several blocks of each log.
const BANNER_BYTES_MAX: usize = 9_000;

/// All transactions of a run.
#[derive(Default)]
pub struct Book {
    moment: Moment,
    tickets: Vec<Ticket>,
    banners: u64,
    /// What the counters were when the node was last started.
    base: BTreeMap<usize, i64>,
    /// Tickets of this life begin here.
    life: usize,
    /// Transactions that were carried out.
    pub done: u64,
    /// Transactions that a changed watch stopped.
    pub given_up: u64,
    /// Transactions that were refused.
    pub refused: u64,
    /// True if the disk may refuse.
    pub may_refuse: bool,
}

/// A transaction that raised or read counters.
struct Ticket {
    counters: Vec<usize>,
    /// The numbers that it got, if that is known.
    numbers: Option<Vec<i64>>,
    raises: bool,
    refused: bool,
    /// Its client was told that nobody knows whether it holds.
    in_doubt: bool,
    /// Whether a reader has found it since.
    was_there: Option<bool>,
    start: Moment,
    end: Moment,
}

/// A shared book.
pub type Shared = Rc<RefCell<Book>>;

impl Book {
    fn now(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }
}

fn counter(number: usize) -> String {
    format!("ticket:{number}")
}

fn account(number: usize) -> String {
    format!("account:{number}")
}

fn banner(number: usize) -> String {
    format!("banner:{number}")
}

/// The two keys that a ticket marks.
fn marks(ticket: usize) -> [String; 2] {
    [format!("mark:{ticket}:a"), format!("mark:{ticket}:b")]
}

/// Fills the accounts of a new node.
pub async fn open_accounts(mut client: Client) -> Verdict {
    let asked =
        (0..ACCOUNTS).map(|number| request(["SET", &account(number), &DEPOSIT.to_string()]));
    let asked: Vec<Request> = asked.collect();
    client.must(&asked).await.map(drop)
}

/// A client that does `turns` transactions, or as many as its node lives for.
pub async fn work(book: Shared, mut client: Client, turns: u64, mut chance: fastrand::Rng) {
    for _ in 0..turns {
        if !client.connect().await || client.life().is_wrong() {
            return;
        }
        let looks = !book.borrow().in_doubt().is_empty() && chance.u8(..3) == 0;
        let verdict = match chance.u8(..100) {
            _ if looks => look_at_doubt(&book, &mut client, &mut chance).await,
            0..45 => take_ticket(&book, &mut client, &mut chance).await,
            45..55 => look_at_tickets(&book, &mut client, &mut chance).await,
            55..75 => transfer(&book, &mut client, &mut chance).await,
            75..80 => audit(&book, &mut client, &mut chance).await,
            80..92 => raise_banner(&book, &mut client, &mut chance).await,
            _ => look_at_banners(&book, &mut client, &mut chance).await,
        };
        client.life().note(verdict);
        if chance.u8(..10) == 0 {
            rt::sleep(Duration::from_micros(chance.u64(..10_000))).await;
        }
    }
}

/// What became of a transaction.
enum Fate {
    Done(Vec<Reply>),
    /// A watched key had changed.
    GivenUp,
    Refused,
    /// The node does not know what has become of it.
    InDoubt,
    /// The connection broke.
    Unknown,
}

/// Sends a whole transaction in one go.
async fn transact(book: &Shared, client: &mut Client, commands: &[Request]) -> Verdict<Fate> {
    let mut asked = vec![request(["MULTI"])];
    asked.extend_from_slice(commands);
    asked.push(request(["EXEC"]));
    let mut replies = client.call(&asked).await?;
    if replies.len() < asked.len() {
        return Ok(Fate::Unknown);
    }
    let last = replies.pop().expect("one for each request");
    fate(book, last)
}

fn fate(book: &Shared, last: Reply) -> Verdict<Fate> {
    let mut book = book.borrow_mut();
    match last {
        Reply::Array(items) => {
            let error = items.iter().find(|item| matches!(item, Reply::Error(_)));
            if let Some(error) = error {
                return Err(format!("{error:?} within a transaction"));
            }
            book.done += 1;
            Ok(Fate::Done(items))
        }
        Reply::Nil => {
            book.given_up += 1;
            Ok(Fate::GivenUp)
        }
        Reply::Simple(text) if text == "OK" => {
            book.done += 1;
            Ok(Fate::Done(Vec::new()))
        }
        Reply::Error(text) if book.may_refuse && text.starts_with("MISCONF") => {
            book.refused += 1;
            Ok(Fate::Refused)
        }
        Reply::Error(text) if book.may_refuse && text.starts_with("UNKNOWN") => Ok(Fate::InDoubt),
        other => Err(format!("a transaction was answered with {other:?}")),
    }
}

/// True if what was to be read may be lost with the log that failed.
fn in_doubt(book: &Shared, reply: &Reply) -> bool {
    book.borrow().may_refuse && matches!(reply, Reply::Error(text) if text.starts_with("UNKNOWN"))
}

fn some_of(count: usize, least: usize, chance: &mut fastrand::Rng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    chance.shuffle(&mut all);
    all.truncate(chance.usize(least..=count));
    all
}

async fn take_ticket(book: &Shared, client: &mut Client, chance: &mut fastrand::Rng) -> Verdict {
    let mut counters = some_of(COUNTERS, 1, chance);
    counters.truncate(4);
    let ticket = {
        let mut book = book.borrow_mut();
        let start = book.now();
        book.tickets.push(Ticket {
            counters: counters.clone(),
            numbers: None,
            raises: true,
            refused: false,
            in_doubt: false,
            was_there: None,
            start,
            end: Moment::MAX,
        });
        book.tickets.len() - 1
    };
    let raise = |number: &usize| request(["INCR", &counter(*number)]);
    let mut commands: Vec<Request> = counters.iter().map(raise).collect();
    for mark in marks(ticket) {
        commands.push(request(["SET", &mark, &ticket.to_string()]));
    }
    let fate = transact(book, client, &commands).await?;
    let mut book = book.borrow_mut();
    let now = book.now();
    let entry = &mut book.tickets[ticket];
    match fate {
        Fate::Done(replies) => {
            let numbers = replies[..counters.len()].iter().map(Reply::number);
            entry.numbers = Some(numbers.collect::<Verdict<_>>()?);
            entry.end = now;
        }
        Fate::Refused => entry.refused = true,
        Fate::InDoubt => entry.in_doubt = true,
        Fate::Unknown => {}
        Fate::GivenUp => return Err("nothing was watched, and yet it had changed".to_owned()),
    }
    Ok(())
}

async fn look_at_tickets(
    book: &Shared,
    client: &mut Client,
    chance: &mut fastrand::Rng,
) -> Verdict {
    let counters = some_of(COUNTERS, 2, chance);
    let start = book.borrow_mut().now();
    let Some(values) = read_all(
        book,
        client,
        chance,
        counters.iter().map(|one| counter(*one)),
    )
    .await?
    else {
        return Ok(());
    };
    let numbers = values.iter().map(Reply::number).collect::<Verdict<_>>()?;
    let mut book = book.borrow_mut();
    let end = book.now();
    book.tickets.push(Ticket {
        counters,
        numbers: Some(numbers),
        raises: false,
        refused: false,
        in_doubt: false,
        was_there: None,
        start,
        end,
    });
    Ok(())
}

/// Reads keys at one moment, by MGET or by a transaction.
async fn read_all(
    book: &Shared,
    client: &mut Client,
    chance: &mut fastrand::Rng,
    keys: impl Iterator<Item = String>,
) -> Verdict<Option<Vec<Reply>>> {
    if chance.bool() {
        let asked = keys.fold(request(["MGET"]), Request::with);
        let mut replies = client.call(&[asked]).await?;
        let known = replies.pop().filter(|reply| !in_doubt(book, reply));
        return known.map(Reply::items).transpose();
    }
    let commands: Vec<Request> = keys.map(|key| request(["GET", &key])).collect();
    match transact(book, client, &commands).await? {
        Fate::Done(replies) => Ok(Some(replies)),
        Fate::Refused => Err("a reading was refused".to_owned()),
        _ => Ok(None),
    }
}

/// Looks for the marks of a transaction of which nobody knows whether it holds.
async fn look_at_doubt(book: &Shared, client: &mut Client, chance: &mut fastrand::Rng) -> Verdict {
    let doubts = book.borrow().in_doubt();
    let ticket = doubts[chance.usize(..doubts.len())];
    let [one, other] = marks(ticket);
    let asked = match chance.u8(..7) {
        0 => request(["GET", &one]),
        1 => request(["GET", &other]),
        2 => request(["EXISTS", &one, &other]),
        3 => request(["MGET", &one, &other]),
        4 => request(["PTTL", &other]),
        5 => request(["STRLEN", &one]),
        _ => request(["KEYS", &format!("mark:{ticket}:*")]),
    };
    let Some(reply) = client.call(&[asked]).await?.pop() else {
        return Ok(());
    };
    let is_there = match &reply {
        Reply::Nil | Reply::Integer(-2 | 0) => false,
        Reply::Bulk(_) | Reply::Integer(_) => true,
        Reply::Array(items) => items.iter().any(|item| *item != Reply::Nil),
        reply if in_doubt(book, reply) => return Ok(()),
        other => return Err(format!("a mark was asked for: {other:?}")),
    };
    let mut book = book.borrow_mut();
    let before = book.tickets[ticket].was_there.replace(is_there);
    match before.is_none_or(|before| before == is_there) {
        true => Ok(()),
        false => Err(format!("transaction {ticket} comes and goes: {reply:?}")),
    }
}

/// Moves money: watches both accounts, reads them, and writes them if nobody else has.
async fn transfer(book: &Shared, client: &mut Client, chance: &mut fastrand::Rng) -> Verdict {
    let pair = some_of(ACCOUNTS, 2, chance);
    let [from, to] = [account(pair[0]), account(pair[1])];
    let amount = chance.i64(1..100);
    if chance.u8(..4) == 0 {
        let amount = amount.to_string();
        let commands = [
            request(["DECRBY", &from, &amount]),
            request(["INCRBY", &to, &amount]),
        ];
        return transact(book, client, &commands).await.map(drop);
    }
    // Sometimes more is watched than is written.
    let mut watch = request(["WATCH", &from, &to]);
    for other in &pair[2..] {
        watch = watch.with(account(*other));
    }
    let mut asked = vec![watch];
    asked.extend(pair.iter().map(|one| request(["GET", &account(*one)])));
    let replies = client.call(&asked).await?;
    if replies.len() < asked.len() {
        return Ok(());
    }
    if replies.iter().any(|reply| in_doubt(book, reply)) {
        return client.call(&[request(["UNWATCH"])]).await.map(drop);
    }
    let balances = replies[1..].iter().map(Reply::number);
    let balances: Vec<i64> = balances.collect::<Verdict<_>>()?;
    if chance.u8(..8) == 0 {
        rt::sleep(Duration::from_micros(chance.u64(..3_000))).await;
    }
    let commands = match chance.bool() {
        true => vec![
            request(["SET", &from, &(balances[0] - amount).to_string()]),
            request(["SET", &to, &(balances[1] + amount).to_string()]),
        ],
        // All that the others have goes to one of them: right only if none has changed.
        false => {
            let set = |(index, one): (usize, &usize)| {
                let all: i64 = balances.iter().sum();
                let now = if index == 0 { all } else { 0 };
                request(["SET", &account(*one), &now.to_string()])
            };
            pair.iter().enumerate().map(set).collect()
        }
    };
    transact(book, client, &commands).await.map(drop)
}

async fn audit(book: &Shared, client: &mut Client, chance: &mut fastrand::Rng) -> Verdict {
    match read_all(book, client, chance, (0..ACCOUNTS).map(account)).await? {
        Some(values) => check_sum(&values),
        None => Ok(()),
    }
}

fn check_sum(values: &[Reply]) -> Verdict {
    let balances = values.iter().map(Reply::number);
    let balances: Vec<i64> = balances.collect::<Verdict<_>>()?;
    match balances.iter().sum::<i64>() == DEPOSIT * ACCOUNTS as i64 {
        true => Ok(()),
        false => Err(format!("money was lost or made: {balances:?}")),
    }
}

async fn raise_banner(book: &Shared, client: &mut Client, chance: &mut fastrand::Rng) -> Verdict {
    let number = {
        let mut book = book.borrow_mut();
        book.banners += 1;
        book.banners
    };
    let filling = "~".repeat(chance.usize(..BANNER_BYTES_MAX) * usize::from(chance.u8(..4) == 0));
    let value = format!("{number}{filling}");
    let asked = (0..BANNERS).fold(request(["MSET"]), |asked, one| {
        asked.with(banner(one)).with(&value)
    });
    match client.call(&[asked]).await?.pop() {
        Some(reply) => fate(book, reply).map(drop),
        None => Ok(()),
    }
}

async fn look_at_banners(
    book: &Shared,
    client: &mut Client,
    chance: &mut fastrand::Rng,
) -> Verdict {
    match read_all(book, client, chance, (0..BANNERS).map(banner)).await? {
        Some(values) => check_banners(&values),
        None => Ok(()),
    }
}

fn check_banners(values: &[Reply]) -> Verdict {
    match values.windows(2).all(|two| two[0] == two[1]) {
        true => Ok(()),
        false => {
            let start = |value: &Reply| match value {
                Reply::Bulk(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(8)]).into(),
                other => format!("{other:?}"),
            };
            let seen: Vec<String> = values.iter().map(start).collect();
            Err(format!("a half of an MSET was seen: {seen:?}"))
        }
    }
}

/// Checks all that a node says when nobody else asks: after its start, or at the end.
pub async fn verify(book: Shared, mut client: Client) -> Verdict {
    let read = |keys: Vec<String>| keys.iter().fold(request(["MGET"]), Request::with);
    let counters = read((0..COUNTERS).map(counter).collect());
    let accounts = read((0..ACCOUNTS).map(account).collect());
    let banners = read((0..BANNERS).map(banner).collect());
    let mut replies = client.must(&[counters, accounts, banners]).await?;
    check_banners(&replies.pop().expect("three replies").items()?)?;
    check_sum(&replies.pop().expect("three replies").items()?)?;
    let numbers = replies.pop().expect("three replies").items()?;
    let numbers: Vec<i64> = numbers.iter().map(Reply::number).collect::<Verdict<_>>()?;
    let tickets = book.borrow().tickets.len();
    let mut holds = vec![false; tickets];
    for first in (0..tickets).step_by(100) {
        let some = first..tickets.min(first + 100);
        let asked = read(some.clone().flat_map(marks).collect());
        let values = client.must(&[asked]).await?.remove(0).items()?;
        for (ticket, values) in some.zip(values.chunks(2)) {
            holds[ticket] = book.borrow().check_marks(ticket, values)?;
        }
    }
    book.borrow_mut().settle(&holds, &numbers)
}

impl Book {
    /// Transactions of this life of which nobody knows whether they hold.
    fn in_doubt(&self) -> Vec<usize> {
        let doubts = (self.life..self.tickets.len()).filter(|one| self.tickets[*one].in_doubt);
        doubts.collect()
    }

    /// True if the marks of `ticket` are there; it must be both of them or none.
    fn check_marks(&self, ticket: usize, values: &[Reply]) -> Verdict<bool> {
        let there: Vec<bool> = values.iter().map(|value| *value != Reply::Nil).collect();
        let entry = &self.tickets[ticket];
        let known = entry.numbers.is_some() && entry.raises;
        if there[0] != there[1] {
            return Err(format!("half of transaction {ticket} is there: {there:?}"));
        }
        if known && !there[0] {
            return Err(format!("transaction {ticket} was acknowledged and is lost"));
        }
        if entry.refused && there[0] {
            return Err(format!("transaction {ticket} was refused and is there"));
        }
        if let Some(was_there) = entry.was_there
            && was_there != there[0]
        {
            return Err(format!(
                "for a reader transaction {ticket} was there: {was_there}, and now: {there:?}"
            ));
        }
        Ok(there[0])
    }

    /// Checks the tickets of the life that is over, of which those that hold are known now.
    fn settle(&mut self, holds: &[bool], numbers: &[i64]) -> Verdict {
        for (counter, number) in numbers.iter().enumerate() {
            let raised = (0..self.tickets.len()).filter(|ticket| {
                holds[*ticket] && self.tickets[*ticket].counters.contains(&counter)
            });
            let raised = raised.count() as i64;
            if raised != *number {
                return Err(format!(
                    "{raised} transactions raised counter {counter} to {number}"
                ));
            }
        }
        self.check_order()?;
        // What does not hold now never will.
        for (ticket, holds) in holds.iter().enumerate() {
            self.tickets[ticket].refused |= !holds;
        }
        self.life = self.tickets.len();
        self.base = numbers.iter().copied().enumerate().collect();
        Ok(())
    }

    /// Finds an order of this life's tickets that fits their numbers and their times.
    fn check_order(&self) -> Verdict {
        let tickets = &self.tickets[self.life..];
        let mut order = Order::new(tickets.len());
        for counter in 0..COUNTERS {
            let mut seen: Vec<(i64, bool, usize)> = Vec::new();
            for (index, ticket) in tickets.iter().enumerate() {
                let at = ticket.counters.iter().position(|one| *one == counter);
                if let (Some(at), Some(numbers)) = (at, &ticket.numbers) {
                    seen.push((numbers[at], !ticket.raises, index));
                }
            }
            // A raise comes before those that read its number.
            seen.sort_unstable();
            if let Some((least, ..)) = seen.iter().find(|one| !one.1)
                && *least <= self.base.get(&counter).copied().unwrap_or(0)
            {
                return Err(format!("counter {counter} went back to {least}"));
            }
            let mut before: Vec<usize> = Vec::new();
            for same in seen.chunk_by(|one, two| one.0 == two.0) {
                let raises: Vec<usize> =
                    same.iter().filter(|one| !one.1).map(|one| one.2).collect();
                if raises.len() > 1 {
                    return Err(format!("counter {counter} gave {} twice", same[0].0));
                }
                let reads: Vec<usize> = same.iter().filter(|one| one.1).map(|one| one.2).collect();
                for first in &before {
                    raises
                        .iter()
                        .chain(&reads)
                        .for_each(|then| order.add(*first, *then));
                }
                for first in &raises {
                    reads.iter().for_each(|then| order.add(*first, *then));
                }
                before = if reads.is_empty() { raises } else { reads };
            }
        }
        let known = tickets
            .iter()
            .enumerate()
            .filter(|one| one.1.numbers.is_some());
        let times: Vec<_> = known
            .map(|(index, ticket)| (index, ticket.start, ticket.end))
            .collect();
        order.add_times(&times);
        order.check()
    }
}
