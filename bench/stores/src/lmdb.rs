//! LMDB through `heed`, durable as it is by default: a commit syncs its pages before the root that names them.
//!
//! Owns: how the work is put to it. Does not know: what the work is.

use std::path::Path;

use anyhow::Result;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions};

use crate::work::{self, Blocking, Figures, Work, key, value};

struct Lmdb<'e> {
    env: &'e Env,
    table: Database<'e, Bytes, Bytes>,
}

/// Does the whole work.
pub(crate) fn run(folder: &Path, work: &Work) -> Result<Figures> {
    let mut options = EnvOpenOptions::new();
    options.map_size(work::MAP_BYTES);
    // SAFETY: the folder was made for this run; no other process and no other environment touches the file.
    let env = unsafe { options.open(folder) }?;
    let opened = env.create_databases_and_commit(env.write_txn()?, |opener, txn| {
        opener.create_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    let mut store = Lmdb { env: &env, table: opened.unwrap_commit() };
    work::drive(&mut store, folder, work)
}

impl Blocking for Lmdb<'_> {
    fn commit(&mut self, rows: &mut dyn Iterator<Item = (u64, u64)>) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        for (number, generation) in rows {
            self.table.put(&mut txn, &key(number), &value(number, generation))?;
        }
        Ok(txn.commit()?)
    }

    fn look_up(&mut self, numbers: &mut dyn Iterator<Item = u64>) -> Result<()> {
        let txn = self.env.read_txn()?;
        for number in numbers {
            work::check_loaded(number, self.table.get(&txn, &key(number))?)?;
        }
        Ok(())
    }

    fn scan(&mut self) -> Result<u64> {
        let txn = self.env.read_txn()?;
        let mut rows = 0;
        for pair in self.table.iter(&txn)? {
            let (key, value) = pair?;
            work::check_scanned(rows, key, value)?;
            rows += 1;
        }
        Ok(rows)
    }
}
