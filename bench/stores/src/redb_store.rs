//! redb, durable as it is by default: a commit is on the disk when it returns.
//!
//! Owns: how the work is put to it. Does not know: what the work is.

use std::path::Path;

use anyhow::Result;
use redb::{AccessGuard, Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::work::{self, Blocking, Figures, Work, key, value};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("keys");

struct Redb {
    database: Database,
}

/// Does the whole work.
pub(crate) fn run(folder: &Path, work: &Work) -> Result<Figures> {
    let mut store = Redb { database: Database::create(folder.join("redb"))? };
    work::drive(&mut store, folder, work)
}

impl Blocking for Redb {
    fn commit(&mut self, rows: &mut dyn Iterator<Item = (u64, u64)>) -> Result<()> {
        let txn = self.database.begin_write()?;
        {
            let mut table = txn.open_table(TABLE)?;
            for (number, generation) in rows {
                table.insert(&key(number)[..], &value(number, generation)[..])?;
            }
        }
        Ok(txn.commit()?)
    }

    fn look_up(&mut self, numbers: &mut dyn Iterator<Item = u64>) -> Result<()> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        for number in numbers {
            let found = table.get(&key(number)[..])?;
            work::check_loaded(number, found.as_ref().map(AccessGuard::value))?;
        }
        Ok(())
    }

    fn scan(&mut self) -> Result<u64> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        let mut rows = 0;
        for pair in table.iter()? {
            let (key, value) = pair?;
            work::check_scanned(rows, key.value(), value.value())?;
            rows += 1;
        }
        Ok(rows)
    }
}
