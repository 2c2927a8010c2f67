//! Watches: live, of the past, filtered, in parts, several on a stream, progress, cancellation, compaction.

use etcd_client::{DeleteOptions, Error, PutOptions, WatchFilterType, WatchOptions, WatchStream};

use crate::{Tour, within};

impl Tour {
    /// Prints the next response of the stream.
    async fn next(&mut self, name: &str, stream: &mut WatchStream) -> Result<(), Error> {
        let Some(message) = within(stream.message()).await else {
            println!("{name}: nothing for 20 seconds");
            return Ok(());
        };
        let Some(answer) = message? else {
            println!("{name}: the stream ended");
            return Ok(());
        };
        println!(
            "{name}: {} watch {} created {} canceled {} compact {} reason {:?} events {}",
            self.header(answer.header()),
            answer.watch_id(),
            answer.created(),
            answer.canceled(),
            self.revision(answer.compact_revision()),
            answer.cancel_reason(),
            answer.events().len()
        );
        for event in answer.events() {
            println!("  {}", self.event(event));
        }
        Ok(())
    }

    pub(crate) async fn watches(&mut self) -> Result<(), Error> {
        let all = WatchOptions::new().with_prefix();
        let mut stream = self.client.watch(self.prefix.as_str(), Some(all.clone().with_watch_id(1))).await?;
        self.next("create", &mut stream).await?;
        self.put("a", "1", PutOptions::new()).await;
        self.next("put", &mut stream).await?;
        let previous = all.clone().with_watch_id(2).with_prev_key().with_filters([WatchFilterType::NoPut]);
        stream.watch(self.prefix.as_str(), Some(previous)).await?;
        self.next("create another", &mut stream).await?;
        stream.cancel(1).await?;
        self.next("cancel", &mut stream).await?;
        self.put("a", "2", PutOptions::new()).await;
        self.client.delete(self.key("a"), Some(DeleteOptions::new())).await?;
        self.next("delete", &mut stream).await?;
        stream.request_progress().await?;
        self.next("progress", &mut stream).await?;
        stream.watch(self.key("b"), Some(WatchOptions::new().with_watch_id(2))).await?;
        self.next("id in use", &mut stream).await?;
        self.past().await
    }

    async fn past(&mut self) -> Result<(), Error> {
        for (distance, name) in [(1, "all"), (3, "the end")] {
            let options = WatchOptions::new().with_start_revision(self.base + distance).with_prev_key();
            let mut stream = self.client.watch(self.key("a"), Some(options)).await?;
            self.next(name, &mut stream).await?;
            self.next(name, &mut stream).await?;
        }
        self.client.compact(self.base + 3, None).await?;
        let options = WatchOptions::new().with_start_revision(self.base + 2);
        let mut stream = self.client.watch(self.key("a"), Some(options)).await?;
        self.next("compacted", &mut stream).await?;
        self.next("compacted", &mut stream).await
    }
}
