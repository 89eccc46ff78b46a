//! `steady etcd`: a member of an etcd, the bundled one, on a machine of its own.

use steady_apiserver::bundled::{BundledEtcd, Membership, has_data};
use steady_apiserver::storage::{Etcd as Store, EtcdSettings, Peer};

use super::ending::ending;
use super::hidden::guard_words;
use super::machine::{data_directory, host_name, lock};
use super::{Etcd, EtcdVerb, log};
use crate::args::Global;
use crate::failure::Failure;
use crate::out::{Out, note};

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}

async fn connect(member: &str) -> Result<Store, Failure> {
    let store = Store::connect(&EtcdSettings { endpoints: vec![member.to_owned()], tls: None }).await;
    store.map_err(|error| Failure::failed(format!("etcd at {member} does not answer: {error}")))
}

/// Runs a member until it is asked to end, or says or changes who is a member.
pub async fn etcd(args: Etcd, global: &Global) -> Result<(), Failure> {
    match &args.verb {
        None => run(&args, None).await,
        Some(EtcdVerb::Join { member }) => run(&args, Some(member)).await,
        Some(EtcdVerb::Leave { leaver, member }) => leave(leaver, member).await,
        Some(EtcdVerb::Members { member }) => members(member, &mut Out::stdout(global.color)).await,
    }
}

async fn run(args: &Etcd, join: Option<&str>) -> Result<(), Failure> {
    log::to_stderr();
    let mut ending = ending()?;
    let directory = data_directory(args.data_dir.clone())?;
    let _lock = lock(&directory)?;
    let name = args.name.clone().unwrap_or_else(host_name);
    let again = has_data(&directory);
    let alone = Membership::alone(&name, args.client_url.clone(), args.peer_url.clone());
    let (membership, others) = match join {
        Some(member) => joining(args, alone, member, again).await?,
        None => (alone, None),
    };
    let guard = guard_words().map_err(failed)?;
    let (mut bundled, store) = tokio::select! {
        started = BundledEtcd::start_member(&directory, &guard, &membership) => started.map_err(failed)?,
        _ = ending.wait_for(|ending| *ending) => return Ok(()),
    };
    note(&format!("steady etcd: {name} at {}", args.client_url));
    let settling = async {
        if let Some((others, id)) = others {
            others.promote(id).await.map_err(failed)?;
        }
        let votes = settled(&store, args, again).await?;
        note(&format!("steady etcd: {votes} of the members vote"));
        std::future::pending().await
    };
    let ended = tokio::select! {
        failure = settling => failure,
        error = bundled.ended() => Err(failed(error)),
        _ = ending.wait_for(|ending| *ending) => Ok(()),
    };
    drop(store);
    // One that failed to become a member must not go on as if it were one.
    bundled.stop().await;
    ended
}

/// Announces this member to the others, unless it was announced before and did not get further. Who is to be asked to let
/// it vote, and its number there; nobody when it has voted before, or when it is started `again` and they are away.
async fn joining(
    args: &Etcd,
    alone: Membership,
    member: &str,
    again: bool,
) -> Result<(Membership, Option<(Store, u64)>), Failure> {
    // With its log it knows the others; without it, it must never found a cluster of its own.
    let lonely = Membership { joins: true, ..alone };
    let name = lonely.name.clone();
    let there = match connect(member).await {
        Ok(there) => there,
        Err(_) if again => return Ok((lonely, None)),
        Err(failure) => return Err(failure),
    };
    let peers = there.peers().await.map_err(failed)?;
    let own = peers.iter().find(|peer| peer.peer_urls.contains(&args.peer_url));
    if let Some(other) = peers.iter().find(|peer| peer.name == name && own.is_none_or(|own| own.id != peer.id)) {
        return Err(Failure::usage(format!(
            "there is a member `{name}` already ({}); choose another --name, or take that one out: steady etcd leave \
             {name} {member}",
            other.peer_urls.join(",")
        )));
    }
    if again {
        return Ok((lonely, own.filter(|own| own.learner).map(|own| own.id).map(|id| (there, id))));
    }
    let (peers, id) = match own {
        Some(own) if !own.name.is_empty() => {
            return Err(Failure::usage(format!(
                "{} is a member already (`{}`), and its data is not in --data-dir; take it out first: steady etcd leave \
                 {} {member}",
                args.peer_url, own.name, own.name
            )));
        }
        _ => there.announce(&args.peer_url).await.map_err(|error| {
            Failure::failed(format!("{member} does not take {} as a member: {error}", args.peer_url))
        })?,
    };
    let named = |peer: &Peer| if peer.id == id { name.clone() } else { peer.name.clone() };
    let urls = |peer: &Peer| peer.peer_urls.iter().map(|url| (named(peer), url.clone())).collect::<Vec<_>>();
    let cluster = peers.iter().flat_map(urls).collect();
    Ok((Membership { cluster, ..lonely }, Some((there, id))))
}

/// Waits until the members answer, which takes a majority of them, and tells them when a lonely one has moved. How many
/// of them vote.
async fn settled(store: &Store, args: &Etcd, again: bool) -> Result<usize, Failure> {
    let peers = loop {
        match store.peers().await {
            Ok(peers) => break peers,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(500)).await,
        }
    };
    if let [own] = &peers[..]
        && again
        && own.peer_urls != [args.peer_url.clone()]
    {
        store.move_to(own.id, &args.peer_url).await.map_err(failed)?;
        note(&format!("steady etcd: {} is at {} now", own.name, args.peer_url));
    }
    Ok(peers.iter().filter(|peer| !peer.learner).count())
}

async fn leave(leaver: &str, member: &str) -> Result<(), Failure> {
    let store = connect(member).await?;
    let peers = store.peers().await.map_err(failed)?;
    let names = || peers.iter().map(|peer| peer.name.clone()).collect::<Vec<_>>().join(", ");
    let Some(peer) = peers.iter().find(|peer| peer.name == leaver) else {
        return Err(Failure::usage(format!("there is no member `{leaver}`; members: {}", names())));
    };
    if peers.len() == 1 {
        return Err(Failure::usage(format!("`{leaver}` is the last member; end its process instead")));
    }
    store.dismiss(peer.id).await.map_err(failed)?;
    note(&format!("steady etcd: {leaver} has left; its process ends, and its data directory can go"));
    Ok(())
}

async fn members(member: &str, out: &mut Out) -> Result<(), Failure> {
    for peer in connect(member).await?.peers().await.map_err(failed)? {
        let state = if peer.learner { "learner" } else { "votes" };
        out.line(&format!("{}\t{state}\t{}\t{}", peer.name, peer.client_urls.join(","), peer.peer_urls.join(",")))?;
    }
    Ok(())
}
