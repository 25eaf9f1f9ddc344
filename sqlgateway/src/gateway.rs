//! One SQL gateway: what its sessions share.

use crate::activity::Activities;
use crate::catalog::{CatalogStore, Garbage};
use crate::ddl::builds::{Abandoned, TAKEOVER};
use crate::ddl::cleaner;
use crate::error::{Result, SqlError};
use crate::query::{QueryEngine, VirtualTables};
use crate::session::{CancelHandle, PlanCache, Session, SessionParams};
use crate::settings::Settings;
use lineradb_client::{Client, TransactionOptions};
use lineradb_common::clock::wall_clock_us;
use lineradb_common::random;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// The database that exists.
pub const DATABASE: &str = "lineradb";

/// How a gateway starts.
pub struct GatewayOptions {
    /// The transaction layer.
    pub client: Client,
    /// `statement_timeout` of new sessions in milliseconds; 0: none.
    pub statement_timeout_ms: u64,
    /// Tables of the system schemas.
    pub virtual_tables: Arc<dyn VirtualTables>,
    /// An index build whose gateway shows no life for so long is taken over.
    pub takeover: Duration,
    /// Where its sessions say what they are doing.
    pub activities: Arc<Activities>,
}

impl GatewayOptions {
    /// The defaults.
    pub fn new(client: Client, virtual_tables: Arc<dyn VirtualTables>) -> Self {
        GatewayOptions {
            client,
            statement_timeout_ms: 0,
            virtual_tables,
            takeover: TAKEOVER,
            activities: Arc::default(),
        }
    }
}

/// One SQL gateway: catalog cache, plan cache, sessions.
pub struct Gateway {
    pub(crate) client: Client,
    pub(crate) catalog: CatalogStore,
    pub(crate) engine: Arc<QueryEngine>,
    pub(crate) virtual_tables: Arc<dyn VirtualTables>,
    pub(crate) plans: PlanCache,
    defaults: Settings,
    sessions: Mutex<HashMap<i32, (i32, CancelHandle)>>,
    next_session: AtomicI32,
    activities: Arc<Activities>,
    pub(crate) abandoned: Abandoned,
    pub(crate) takeover: Duration,
    wake: Arc<Notify>,
    background: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Gateway {
    /// Starts: reads the catalog, and writes the first one into a new cluster.
    ///
    /// # Errors
    /// 57P03 while the cluster cannot be reached.
    pub async fn start(options: GatewayOptions) -> Result<Arc<Gateway>> {
        let catalog = CatalogStore::open(options.client.clone()).await?;
        let mut defaults = Settings::default();
        defaults.statement_timeout = (options.statement_timeout_ms > 0)
            .then(|| Duration::from_millis(options.statement_timeout_ms));
        let gateway = Arc::new(Gateway {
            client: options.client,
            catalog,
            engine: QueryEngine::new(crate::query::EngineOptions::default())?,
            virtual_tables: options.virtual_tables,
            plans: PlanCache::new(),
            defaults,
            sessions: Mutex::new(HashMap::new()),
            next_session: AtomicI32::new(1),
            activities: options.activities,
            abandoned: Abandoned::default(),
            takeover: options.takeover,
            wake: Arc::default(),
            background: Mutex::new(None),
        });
        let work = cleaner::run(
            Arc::downgrade(&gateway),
            Arc::clone(&gateway.wake),
            gateway.takeover / 2,
        );
        *gateway.background.lock() =
            Some(lineradb_common::spawn::task("sql catalog cleaner", work));
        Ok(gateway)
    }

    /// A new session.
    ///
    /// # Errors
    /// 3D000 for another database, 22023 for a start-up parameter that is wrong.
    pub fn session(self: &Arc<Self>, params: SessionParams) -> Result<Session> {
        let mut settings = self.defaults.clone();
        if !params.user.is_empty() {
            settings.user = params.user;
        }
        if !params.database.is_empty() && params.database != DATABASE {
            return Err(SqlError::new(
                "3D000",
                format!("database \"{}\" does not exist", params.database),
            ));
        }
        settings.application_name = params.application_name;
        let base = settings.clone();
        for (name, value) in params.settings {
            settings.set(&name, Some(&[value]), &base)?;
        }
        let cancel = CancelHandle::default();
        let id = self.next_session.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        let secret = i32::from_be_bytes(random::bytes());
        self.sessions.lock().insert(id, (secret, cancel.clone()));
        let now = wall_clock_us() as i64;
        let (user, application) = (&settings.user, &settings.application_name);
        let activity = self.activities.open(id, user, application, now);
        Ok(Session::new(
            Arc::clone(self),
            settings,
            cancel,
            (id, secret),
            activity,
        ))
    }

    pub(crate) fn forget_session(&self, id: i32) {
        self.sessions.lock().remove(&id);
        self.activities.close(id);
    }

    /// True when a statement would succeed: the catalog can be read now.
    pub async fn ready(&self) -> bool {
        let read = async {
            let txn = self.client.begin(TransactionOptions {
                read_only: true,
                ..TransactionOptions::default()
            })?;
            let loaded = self.catalog.load(&txn).await;
            txn.rollback().await;
            loaded
        };
        match tokio::time::timeout(Duration::from_secs(2), read).await {
            Ok(Ok(snapshot)) => snapshot.version() > 0,
            _ => false,
        }
    }

    /// Cancels the running statement of the session with this key (wire
    /// protocol); true when there is one.
    pub fn cancel(&self, session_id: i32, secret: i32) -> bool {
        let found = self.sessions.lock().get(&session_id).cloned();
        match found {
            Some((expected, handle)) if expected == secret => {
                handle.cancel();
                true
            }
            _ => false,
        }
    }

    /// The transaction layer.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The catalog.
    pub fn catalog(&self) -> &CatalogStore {
        &self.catalog
    }

    /// Has the background work look for something to do now.
    pub(crate) fn clean_up(&self) {
        self.wake.notify_one();
    }

    /// Ends the background work; what is left is another gateway's.
    pub fn stop_background(&self) {
        if let Some(task) = self.background.lock().take() {
            task.abort();
        }
    }

    /// Spans that wait to be deleted.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub async fn garbage(&self) -> Result<Vec<Garbage>> {
        cleaner::list(&self.client)
            .await
            .map(|all| all.into_iter().map(|(_, g)| g).collect())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop_background();
    }
}
