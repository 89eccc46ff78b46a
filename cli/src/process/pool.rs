//! `steady pool`: makes instances for capacity providers.

use steady_core::SystemClock;
use steady_pool::{Exec, Maker, Process, ProcessSettings, Provider, Settings};
use steady_runtime::Client;

use super::ending::ending;
use super::machine::{data_directory, lock, metrics};
use super::{Pool, log};
use crate::args::Global;
use crate::failure::Failure;
use crate::out::note;

/// Makes instances, and ends them, until it is asked to end itself.
pub async fn pool(args: Pool, global: &Global) -> Result<(), Failure> {
    log::to_stderr();
    let ending = ending()?;
    let servers = global.servers()?;
    let client = Client::new(&servers).map_err(|e| Failure::usage(e.to_string()))?;
    let directory = data_directory(args.data_dir)?.join("pool");
    let _lock = lock(&directory)?;
    let metrics = metrics(args.metrics.as_deref()).await?;
    let (maker, what): (Box<dyn Maker>, String) = if let Some(program) = args.exec {
        (Box::new(Exec::new(program.clone())), format!("by {}", program.display()))
    } else {
        let program = std::env::current_exe();
        let program = program.map_err(|e| Failure::failed(format!("where is this program? {e}")))?;
        let settings = ProcessSettings { program, directory: directory.join("instances"), address: args.address };
        (Box::new(Process::new(settings)), "as agents on this machine".to_owned())
    };
    let name = args.capacity_provider.unwrap_or_default();
    let of = if name.is_empty() { "every capacity provider".to_owned() } else { format!("capacity provider {name}") };
    note(&format!("steady pool: instances of {of}, {what}, as {} says", servers.join(", ")));
    let provider = Provider { cluster: global.cluster.clone(), name, servers };
    let settings = Settings { provider, directory, holder: steady_runtime::holder(), metrics };
    steady_pool::run(settings, maker.as_ref(), client, &SystemClock, ending).await.map_err(Failure::failed)?;
    note(
        "steady pool: its instances go on, and are found again by the next one; deleting their provider, while one runs, ends them",
    );
    Ok(())
}
