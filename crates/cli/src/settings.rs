//! The options that set keys of the configuration, shared by the commands that read it.

use std::path::PathBuf;

use clap::Args;
use ultra_perf::config::ConfigLoader;

/// Options that are keys of the configuration; they win over the file and the environment.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Backend that is made fast, such as http://127.0.0.1:8000; several share the requests, each
    /// with its settings: http://127.0.0.1:8001,weight=2,max=8 (also zone=NAME and priority=N)
    #[arg(long, value_name = "URL[,weight=N][,max=N]")]
    to: Vec<String>,
    /// Address on which clients are served [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address of the admin API, on the loopback interface [default: 127.0.0.1:8600]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Redis server that carries the cache beyond this machine, such as redis://127.0.0.1:6379
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Where the defaults come from: basic, advanced, ultra or extreme [default: advanced]
    #[arg(long, value_name = "LEVEL")]
    level: Option<String>,
    /// Configuration file [default: ultra-perf.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is logged: a level, with exceptions per module, such as info,ultra_perf_http=debug
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// Form of the log: auto, human or json [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl Settings {
    /// A loader with all sources: file, environment, and these options.
    pub(crate) fn loader(&self) -> ConfigLoader {
        let loader = match &self.config {
            Some(path) => ConfigLoader::new().file(path),
            None => ConfigLoader::new().default_file(),
        };
        let to = (!self.to.is_empty()).then(|| self.to.join(","));
        let options = [
            ("level", "--level", &self.level),
            ("server.to", "--to", &to),
            ("server.listen", "--listen", &self.listen),
            ("server.admin", "--admin", &self.admin),
            ("cache.redis.url", "--redis", &self.redis),
            ("log.level", "--log", &self.log),
            ("log.format", "--log-format", &self.log_format),
        ];
        options.into_iter().fold(
            loader.process_env(),
            |loader, (path, option, value)| match value {
                Some(value) => loader.set(path, value, option),
                None => loader,
            },
        )
    }
}
