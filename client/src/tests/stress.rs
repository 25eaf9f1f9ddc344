//! Transfers between accounts in several shards while requests, replies and
//! refusals go wrong at random and shards split: money is neither made nor
//! lost, what was acknowledged happened once, what was refused did not.

use super::fake::Fake;
use super::*;
use crate::{Error, ScanOptions};
use lineradb_common::{random, spawn};
use std::collections::BTreeMap;

const ACCOUNTS: u64 = 12;
const START: i64 = 100;

fn account(n: u64) -> String {
    format!("{}", (b'b' + (n * 2) as u8) as char)
}

fn number(bytes: Option<Bytes>) -> i64 {
    let bytes = bytes.unwrap_or_default();
    std::str::from_utf8(&bytes).unwrap().parse().unwrap()
}

async fn transfer(client: &Client, label: &str, locking: bool) -> crate::Result<()> {
    let from = random::below(ACCOUNTS);
    let to = (from + 1 + random::below(ACCOUNTS - 1)) % ACCOUNTS;
    let (from, to, label) = (account(from), account(to), format!("zz{label}"));
    client
        .run(TransactionOptions::default(), |txn| {
            let (from, to, label) = (from.clone(), to.clone(), label.clone());
            async move {
                let keys = [b(&from), b(&to)];
                let values = if locking {
                    txn.locking_get(&keys, None, Default::default()).await?
                } else {
                    txn.multi_get(&keys, None).await?
                };
                let [one, two] = values.try_into().unwrap();
                let options = WriteOptions::default();
                txn.put(b(&from), b(&(number(one) - 1).to_string()), options)?;
                txn.put(b(&to), b(&(number(two) + 1).to_string()), options)?;
                txn.put(b(&label), b("done"), options)
            }
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_is_neither_made_nor_lost() {
    let (fake, client) = Fake::start(&["g", "n", "t"], Duration::from_secs(4));
    let start = START.to_string();
    let accounts: Vec<String> = (0..ACCOUNTS).map(account).collect();
    let pairs: Vec<_> = accounts
        .iter()
        .map(|a| (a.as_str(), start.as_str()))
        .collect();
    set(&client, &pairs).await;
    fake.0.lock().noise = 30;
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let fake = fake.clone();
            spawn::task("transfers", async move {
                let client = fake.client(Duration::from_secs(4));
                let mut outcomes = BTreeMap::new();
                for i in 0..25 {
                    let label = format!("{worker}-{i}");
                    let outcome = transfer(&client, &label, i % 2 == 0).await;
                    outcomes.insert(label, outcome);
                    if i == 12 && worker == 0 {
                        fake.0.lock().split(b"j");
                    }
                    if i % 10 == 9 {
                        fake.deliver_late();
                    }
                }
                outcomes
            })
        })
        .collect();
    let mut outcomes = BTreeMap::new();
    for worker in workers {
        outcomes.extend(worker.await.unwrap());
    }
    fake.heal();
    fake.deliver_late();

    let client = fake.client(LONG);
    let txn = begin(&client);
    let pairs = txn.scan(all(), ScanOptions::default(), None).await.unwrap();
    let (labels, money): (Vec<_>, Vec<_>) =
        pairs.into_iter().partition(|(k, _)| k.starts_with(b"zz"));
    let total: i64 = money.into_iter().map(|(_, v)| number(Some(v))).sum();
    assert_eq!(total, START * ACCOUNTS as i64);
    let done = |label: &str| labels.iter().any(|(k, _)| &k[2..] == label.as_bytes());
    let mut committed = 0;
    for (label, outcome) in &outcomes {
        match outcome {
            Ok(()) => {
                committed += 1;
                assert!(done(label), "{label} was acknowledged and is not there");
                assert_eq!(fake.versions(&format!("zz{label}")), 1, "{label} twice");
            }
            Err(Error::Unknown { .. }) => {}
            Err(error) => assert!(!done(label), "{label} is there, but: {error}"),
        }
    }
    assert!(committed > 50, "only {committed} of 100 came through");
}

/// Of several in a deadlock the youngest gives way: one that has given way before must not
/// be the youngest again.
#[tokio::test]
async fn what_is_tried_again_is_as_old_as_its_first_attempt() {
    let (_fake, client) = Fake::start(&[], LONG);
    let attempts = std::sync::Mutex::new(Vec::new());
    let ran = client.run(TransactionOptions::default(), |txn| {
        let mut attempts = attempts.lock().unwrap();
        attempts.push((txn.id(), txn.started()));
        let last = attempts.len() == 3;
        async move {
            match last {
                true => Ok(()),
                false => Err(Error::Deadlock {
                    detail: String::new(),
                }),
            }
        }
    });
    ran.await.unwrap();
    let attempts = attempts.into_inner().unwrap();
    assert!(
        attempts
            .iter()
            .all(|(_, started)| *started == attempts[0].1)
    );
    assert_ne!(attempts[0].0, attempts[1].0);
}
