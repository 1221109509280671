//! What tests plant.

/// Bugs that tests plant to see that the simulator finds them. Nothing is ever planted outside of
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The log's batches are written and acknowledged, and never synced.
    NoSync,
    /// A batch is acknowledged when it is written; the sync comes after.
    AcknowledgeBeforeSync,
    /// Replay goes on behind the first batch whose checksum fails.
    ReplayPastTornTail,
    /// The manifest names a table before that table is synced.
    ManifestBeforeTable,
    /// A directory whose entries changed is not synced.
    NoDirectorySync,
    /// What is moved within the value log is not synced before its old place is given up.
    MovedUnsynced,
    /// A moved record's new place is noted though the key was written meanwhile.
    MoveUnchecked,
    /// A segment of the value log goes before the manifest says that it is not needed.
    SegmentBeforeManifest,
    /// A table is installed that points to values which are not synced.
    TableBeforeValues,
    /// A merge drops a tombstone though something older below may have its key.
    TombstoneTooEarly,
    /// A write leaves the old record of its key in the row cache.
    StaleRow,
    /// A lookup that meets a damaged block takes it for one without the key.
    DamageIsAbsence,
    /// A core whose log cannot say that a transaction never was says so to its readers.
    DoubtForgotten,
    /// A re-sharding makes the new folders count before their manifests are there.
    SwitchTooEarly,
    /// A re-sharding removes the old folders before it is durable that the new ones count.
    OldFoldersFirst,
    /// A re-sharding drops what was prepared of transactions, decided or not.
    UndecidedDropped,
    /// An operation on a key is answered before what it wrote is synced.
    AnsweredUnsynced,
    /// A condition is judged, and its write made, without waiting for the key's latch.
    ConditionUnlatched,
    /// After a re-sharding the numbers of segments begin anew.
    NumbersAgain,
    /// An answer of another node is given to the request that has waited longest.
    AnswersByOrder,
    /// A request is sent, and done, though its deadline has passed.
    DeadlineIgnored,
    /// Who has not proved himself may send a frame of any length.
    GreetingUncapped,
    /// Requests are read from a connection though nobody takes the answers.
    AnswersPileUp,
    /// A replica answers before what it wrote is synced.
    ReplicaUnsynced,
    /// A replica stores what comes, whatever it has.
    OlderOverwrites,
    /// A write above ONE takes its version without hearing the clocks of a majority.
    NoBarrier,
    /// What was lost on its way to a replica is sent again under another version.
    Restamped,
    /// A read above ONE returns what it found without bringing a majority to it.
    NoWriteBack,
    /// A half of the replicas is taken for a majority.
    HalfOfReplicas,
    /// What is asked by an older map is done, by cores too that do not hold the key by the newer
    /// one.
    StaleMapTaken,
    /// Tombstones that hide nothing are dropped though a replica elsewhere may not have heard of
    /// them.
    TombstoneForgotten,
    /// A small file that is written anew gets its name before its bytes are synced.
    RenamedUnsynced,
    /// A keeper of the map answers before what it has promised is on disk.
    PromisedUnwritten,
    /// A half of the map's keepers is taken for a majority.
    HalfOfKeepers,
    /// A node joins though the cluster holds data.
    JoinedLate,
    /// Who founds a cluster in etcd does not ask etcd whether there is one.
    CreatedUnchecked,
    /// A change of the map in etcd of which nothing is known is taken for one that was refused.
    UnknownIsRefused,
    /// A map is taken for the newest, whichever epoch it is of.
    OlderMapTaken,
    /// A node keeps its newer map to itself, and waits to be asked for it.
    NewerMapKept,
    /// A node that reaches too few others does not ask where `join` says.
    NobodyKnocks,
    /// A hint is said to be kept before it is synced.
    HintUnsynced,
    /// A hint is dropped before the replica has said that it is synced there.
    HintForgotten,
    /// A hint counts as if the replica had stored the write, at every level.
    HintCounted,
    /// A hint is handed on under another version.
    HintRestamped,
    /// A node that is back is asked when a round of gossip happens to choose it, and not before.
    ReturnUnnoticed,
    /// A link goes on connecting to where its node was, though it is known to be elsewhere.
    OldAddressKept,
    /// The clock of a core is not moved on by what it reads from replicas.
    ReadUnheard,
    /// A keeper takes part in rounds of a set before it has the map that names it.
    SetBeforeMap,
}
