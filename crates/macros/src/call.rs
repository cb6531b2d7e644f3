//! `#[optimize]` and `#[cached]`: what is checked before, and the body that takes the place of the user's.
//!
//! A cached function looks its key up first and returns. What follows runs on a miss only: it takes a
//! handle of its own, since the arguments that the handle may be borrowed from move into the body, and
//! hands `ultra_perf::call` a closure that makes the result. The layers of that closure, from the outside:
//! time limit, retries, breaker, lane, body. Locals are hygienic; what is generated uses no name of the
//! user's but those of the arguments.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;

use crate::function::{
    Argument, Binding, Function, Handle, awaits_in, borrow_in, companion, conditions,
    impl_trait_in, unchanged,
};
use crate::options::{Attribute, Cache, Lane, Options, Problems, Tag};

pub(crate) fn expand(
    attribute: Attribute,
    arguments: TokenStream,
    item: TokenStream,
) -> TokenStream {
    let mut problems = Problems::default();
    let options = Options::read(attribute, arguments, &mut problems);
    let function =
        Function::read(item.clone(), attribute.name(), options.perf.as_ref(), &mut problems);
    if let Some(function) = &function {
        check(function, &options, &mut problems);
    }
    match (problems.finish(), function) {
        (Ok(()), Some(function)) => Call { function, options }.tokens(),
        (Err(errors), Some(_)) => unchanged(&item, &errors),
        (Err(errors), None) => errors.to_compile_error(),
        (Ok(()), None) => TokenStream::new(),
    }
}

fn check(function: &Function, options: &Options, problems: &mut Problems) {
    check_lane(function, options, problems);
    check_repeats(function, options, problems);
    if let Some(cache) = &options.cache {
        check_cache(function, options, cache, problems);
        check_key(function, options, problems);
    } else {
        let ask = "is about what is cached: add `cache`";
        if let Some(key) = &options.key {
            problems.at(key.span(), format!("`key` {ask}"));
        }
        if let Some(skip) = options.skip.first() {
            problems.at(skip.span(), format!("`skip` {ask}"));
        }
        if let Some(tag) = options.tags.first() {
            let span = match tag {
                Tag::Text(text) => text.span(),
                Tag::Expression(expr) => expr.span(),
            };
            problems.at(span, format!("`tags` {ask}"));
        }
    }
    if !function.is_async() {
        let later = [
            options.timeout.as_ref().map(|(span, _)| (*span, "timeout")),
            options.retry.map(|(span, _)| (span, "retry")),
            options.lane.map(|(span, lane)| (span, lane.name())),
        ];
        for (span, name) in later.into_iter().flatten() {
            let message = format!("`{name}` needs an `async fn`: this one cannot wait");
            problems.at(span, message);
        }
    }
}

fn check_lane(function: &Function, options: &Options, problems: &mut Problems) {
    let Some((_, lane)) = options.lane else {
        for (span, name) in [
            options.priority.as_ref().map(|(span, _)| (*span, "priority")),
            options.memory.map(|(span, _)| (span, "memory")),
        ]
        .into_iter()
        .flatten()
        {
            let message = format!("`{name}` is about a lane: add `io` or `cpu`");
            problems.at(span, message);
        }
        return;
    };
    let what = format!("`{}` runs the body as a task of its own", lane.name());
    check_owned(function, &what, problems);
    if lane != Lane::Io && function.is_async() {
        for span in awaits_in(&function.body) {
            let message = format!(
                "`{}` runs the body on a thread that computes and never waits: use `io`, or await \
                 before the call",
                lane.name()
            );
            problems.at(span, message);
        }
    }
}

/// Everything that goes into a task which may outlive the call is owned.
fn check_owned(function: &Function, what: &str, problems: &mut Problems) {
    let message = format!("{what}, which may outlive this borrow: take it by value");
    if let Some(receiver) = &function.receiver
        && receiver.reference.is_some()
    {
        problems.at(receiver.span(), format!("{message}, as in `self: Arc<Self>`"));
    }
    for span in function.arguments.iter().filter_map(|argument| borrow_in(&argument.ty)) {
        problems.at(span, &message);
    }
}

fn check_repeats(function: &Function, options: &Options, problems: &mut Problems) {
    if let (Some(condition), None) = (&options.retry_if, &options.retry) {
        problems.at(condition.span(), "`retry_if` is about retries: add `retry`");
    }
    if options.retry.is_none() {
        return;
    }
    let message = "a call that changes this cannot be made again: leave `retry` out";
    if let Some(receiver) = &function.receiver {
        let exclusive = receiver.reference.is_some() && receiver.mutability.is_some();
        if exclusive {
            problems.at(receiver.span(), message);
        } else if receiver.reference.is_none() {
            let message = "a call that takes `self` along cannot be made again: take `&self`, or leave \
                           `retry` out";
            problems.at(receiver.span(), message);
        }
    }
    for argument in function.arguments.iter().filter(|it| is_exclusive(it)) {
        problems.at(argument.ty.span(), message);
    }
}

fn is_exclusive(argument: &Argument) -> bool {
    matches!(&argument.ty, syn::Type::Reference(it) if it.mutability.is_some())
}

fn check_cache(function: &Function, options: &Options, cache: &Cache, problems: &mut Problems) {
    if matches!(&function.output, syn::Type::Tuple(it) if it.elems.is_empty()) {
        let message = format!("`{}` returns nothing that could be kept", function.signature.ident);
        problems.at(function.signature.ident.span(), message);
    }
    if let Some(span) = impl_trait_in(&function.output) {
        problems.at(span, "a result that is kept has a type with a name");
    } else if let Some(span) = borrow_in(&function.output) {
        problems.at(span, "a result that is kept outlives this borrow: return what is owned");
    }
    if cache.errors.is_some()
        && let Some((span, _)) = cache.none
    {
        problems.at(span, "a function returns a `Result` or an `Option`: take one of the two out");
    }
    if let Some((_, _)) = &cache.stale {
        check_owned(function, "`stale` makes a newer result in a task of its own", problems);
    }
    if !function.is_async() {
        let waits = [
            cache.stale.as_ref().map(|(span, _)| (*span, "`stale`")),
            cache.stale_if_error.as_ref().map(|(span, _)| (*span, "`stale_if_error`")),
            cache
                .tiers
                .as_ref()
                .filter(|tiers| tiers.disk || tiers.redis)
                .map(|tiers| (tiers.span, "a tier below memory")),
        ];
        for (span, name) in waits.into_iter().flatten() {
            problems.at(span, format!("{name} needs an `async fn`: this one cannot wait"));
        }
    }
    let skipped = |argument: &Argument| {
        let names = &argument.bindings;
        !names.is_empty() && names.iter().all(|it| options.skip.contains(&it.name))
    };
    for argument in function.arguments.iter().filter(|it| is_exclusive(it) && !skipped(it)) {
        let message = "an answer from the cache would not change this: take it by value, or name it \
                       in `skip(..)`";
        problems.at(argument.ty.span(), message);
    }
}

fn check_key(function: &Function, options: &Options, problems: &mut Problems) {
    for name in &options.skip {
        if let Some(key) = &options.key {
            problems
                .at(key.span(), "`key` and `skip`: the key is what `key` says, take `skip` out");
            return;
        }
        if !function.bindings().any(|binding| binding.name == *name) {
            problems.at(name.span(), format!("no argument is called `{name}`"));
        }
    }
    if options.key.is_some() {
        return;
    }
    for argument in function.arguments.iter().filter(|argument| !argument.is_name) {
        let skipped = argument.bindings.iter().all(|it| options.skip.contains(&it.name));
        if argument.bindings.is_empty() || !skipped {
            let message = "a pattern cannot be a part of the key: give the argument a name, or say \
                           `key = ..`";
            problems.at(argument.pattern, message);
        }
    }
}

/// A call that can be expanded.
struct Call {
    function: Function,
    options: Options,
}

impl Call {
    fn tokens(&self) -> TokenStream {
        let body = match &self.options.cache {
            Some(cache) => self.cached(cache),
            None => self.uncached(),
        };
        let function = self.function.with_body(&body);
        let companion = self.options.cache.as_ref().map(|cache| self.companion(cache));
        quote!(#function #companion)
    }

    /// The path and the name of the function.
    fn identity(&self) -> TokenStream {
        identity(&self.options, &self.function)
    }

    fn site(&self) -> TokenStream {
        site(&self.options, &self.function)
    }

    fn is_faulty(&self) -> bool {
        let Options { lane, timeout, breaker, .. } = &self.options;
        lane.is_some() || timeout.is_some() || breaker.is_some()
    }

    /// The type of what can go wrong around the body.
    fn fault(&self) -> TokenStream {
        let krate = self.options.krate();
        if self.is_faulty() {
            quote!(#krate::TaskError)
        } else {
            quote!(::core::convert::Infallible)
        }
    }

    /// Bounds that the result's type has to meet, each told at the option that needs it.
    fn demands(&self) -> TokenStream {
        let krate = self.options.krate();
        let output = self.function.named_output();
        let mut demands = TokenStream::new();
        if let Some((span, _)) = &self.options.retry {
            demands.extend(quote_spanned!(*span=> #krate::call::demand_result::<#output>();));
        }
        let faulty = [
            self.options.lane.map(|(span, _)| span),
            self.options.timeout.as_ref().map(|(span, _)| *span),
            self.options.breaker.as_ref().map(|(span, _)| *span),
        ];
        if let Some(span) = faulty.into_iter().flatten().next() {
            demands.extend(quote_spanned!(span=> #krate::call::demand_task_error::<#output>();));
        }
        demands
    }

    /// The path of a function that asks something of the result's type, and is told so there.
    fn at_output(&self, function: &str) -> TokenStream {
        let krate = self.options.krate();
        let function = Ident::new(function, self.function.output.span().resolved_at(mixed()));
        quote!(#krate::call::#function)
    }

    /// The value that says how a result is split into what is kept and what is not.
    fn kind(&self) -> TokenStream {
        kind(&self.options, &self.function)
    }

    /// What the task needs of the handle: its own clone, and the user's name for it.
    fn own_handle(&self) -> TokenStream {
        let krate = self.options.krate();
        let own = Ident::new("own", proc_macro2::Span::mixed_site());
        match &self.function.handle {
            Some(Handle::Parameter { name, by_reference: true }) => {
                quote!(#[allow(unused_variables)] let #name: &#krate::UltraPerf = &#own;)
            }
            Some(Handle::Parameter { name, by_reference: false }) => {
                quote! {
                    #[allow(unused_variables)]
                    let #name: #krate::UltraPerf = ::core::clone::Clone::clone(&#own);
                }
            }
            _ => TokenStream::new(),
        }
    }

    fn moves_handle(&self) -> bool {
        let stale = self.options.cache.as_ref().is_some_and(|cache| cache.stale.is_some());
        self.options.lane.is_some() || stale
    }

    /// The future of `Result<Output, Fault>`, from the time limit to the body. It may use `handle`, a
    /// reference, and `site`.
    fn pipeline(&self) -> TokenStream {
        let krate = self.options.krate();
        let output = self.function.named_output();
        let fault = self.fault();
        let body = &self.function.body;
        let mutable = self.function.mutable_again();
        let rebind = if self.moves_handle() { self.own_handle() } else { TokenStream::new() };
        let own = if self.moves_handle() {
            quote_spanned!(mixed()=> let own: #krate::UltraPerf = ::core::clone::Clone::clone(handle);)
        } else {
            TokenStream::new()
        };
        let terms = self.terms();
        let run = match self.options.lane.map(|(_, lane)| lane) {
            None => quote_spanned! {mixed()=>
                #krate::call::only::<#output, #fault, _>(async move { #rebind #mutable #body })
            },
            Some(Lane::Io) => quote_spanned! {mixed()=>
                #krate::call::on_io(handle, site, #terms, #krate::call::typed::<#output, _>(
                    async move { #rebind #mutable #body }
                ))
            },
            Some(Lane::Cpu) => quote_spanned! {mixed()=>
                #krate::call::on_cpu(handle, site, #terms, move || -> #output {
                    #rebind #mutable #body
                })
            },
            Some(Lane::Memory) => quote_spanned! {mixed()=>
                #krate::call::on_cpu_in_scope(handle, site, #terms, move || -> #output {
                    #rebind #mutable #body
                })
            },
        };
        let mut run = quote_spanned!(mixed()=> { #own #run });
        if let Some((span, name)) = &self.options.breaker {
            let name = quote_spanned!(name.span()=> #krate::call::name_of(&#name));
            run = quote_spanned!(span.resolved_at(mixed())=>
                #krate::call::guarded(handle, #name, #run)
            );
        }
        if let Some((_, times)) = &self.options.retry {
            let again = self.function.bindings().map(|binding| {
                let Binding { name, cfgs, .. } = binding;
                let span = name.span();
                quote_spanned!(span=> #(#cfgs)* let #name = ::core::clone::Clone::clone(&#name);)
            });
            let handles = self.function.own_handles.iter().map(|name| {
                quote! {
                    #[allow(unused_variables)]
                    let #name = ::core::clone::Clone::clone(&#name);
                }
            });
            let condition = match &self.options.retry_if {
                Some(condition) => quote!(#condition),
                None => quote!(|_| true),
            };
            run = quote_spanned! {mixed()=>
                #krate::call::retried(handle, site, #times, #condition, || { #(#again)* #(#handles)* #run })
            };
        }
        if let Some((_, limit)) = &self.options.timeout {
            let limit = limit.tokens();
            run = quote_spanned!(mixed()=> #krate::call::limited(site, #limit, #run));
        }
        run
    }

    fn terms(&self) -> TokenStream {
        let krate = self.options.krate();
        let priority = match &self.options.priority {
            Some((_, level)) => quote!(#krate::call::Priority::#level),
            None => quote!(#krate::call::Priority::Normal),
        };
        let bytes = self.options.memory.map_or(0, |(_, bytes)| bytes);
        quote!(#krate::call::Terms { priority: #priority, memory_bytes: #bytes })
    }

    fn uncached(&self) -> TokenStream {
        let krate = self.options.krate();
        let (site, kind, demands) = (self.site(), self.kind(), self.demands());
        let borrowed = self.function.handle.as_ref().map(Handle::borrowed);
        let output = self.function.named_output();
        let (measured, run, wait) = if self.function.is_async() {
            (self.at_output("measured"), self.pipeline(), quote!(.await))
        } else {
            let run = self.sync_pipeline();
            (self.at_output("measured_sync"), quote!(move || #run), TokenStream::new())
        };
        quote_spanned! {mixed()=>
            #demands
            #site
            #kind
            let handle: &#krate::UltraPerf =
                &::core::clone::Clone::clone({ let perf: &#krate::UltraPerf = #borrowed; perf });
            #measured::<#output, _, _, _>(#krate::call::meter(handle, site), kind, #run) #wait
        }
    }

    fn sync_pipeline(&self) -> TokenStream {
        let krate = self.options.krate();
        let (output, fault) = (self.function.named_output(), self.fault());
        let body = &self.function.body;
        let mutable = self.function.mutable_again();
        let run = quote_spanned! {mixed()=>
            #krate::call::only_sync::<#output, #fault, _>(move || -> #output { #mutable #body })
        };
        match &self.options.breaker {
            None => run,
            Some((_, name)) => {
                let name = quote_spanned!(name.span()=> #krate::call::name_of(&#name));
                quote_spanned!(mixed()=> #krate::call::guarded_sync(handle, #name, move || #run))
            }
        }
    }

    fn key(&self) -> TokenStream {
        let krate = self.options.krate();
        let mut pushes: Vec<TokenStream> = Vec::new();
        let mut push = |span: proc_macro2::Span, cfgs: &[syn::Attribute], part: TokenStream| {
            let method = quote_spanned!(span=> #krate::call::CallKeyBuf::push);
            let key = Ident::new("key", mixed());
            pushes.push(quote_spanned!(span=> #(#cfgs)* #method(&mut #key, &#part);));
        };
        match &self.options.key {
            Some(key) => push(key.span(), &[], quote!((#key))),
            None => {
                for argument in self.function.arguments.iter().filter(|it| it.is_name) {
                    let Some(binding) = argument.bindings.first() else { continue };
                    if !self.options.skip.contains(&binding.name) {
                        let name = &binding.name;
                        push(argument.ty.span(), &argument.cfgs, quote!(#name));
                    }
                }
            }
        }
        quote_spanned! {mixed()=> {
            let mut key = #krate::call::CallKeyBuf::new();
            #(#pushes)*
            key
        }}
    }

    fn tags(&self) -> TokenStream {
        tags(&self.options)
    }

    fn settings(&self, cache: &Cache) -> TokenStream {
        let krate = self.options.krate();
        let time = |time: Option<&crate::quantity::Time>| match time {
            Some(time) => {
                let time = time.tokens();
                quote!(::core::option::Option::Some(#time))
            }
            None => quote!(::core::option::Option::None),
        };
        let ttl = time(cache.ttl.as_ref());
        let stale = time(cache.stale.as_ref().map(|(_, time)| time));
        let stale_if_error = time(cache.stale_if_error.as_ref().map(|(_, time)| time));
        let schema = match cache.schema {
            Some(schema) => quote!(::core::option::Option::Some(#schema)),
            None => quote!(::core::option::Option::None),
        };
        let (disk, redis) = cache.tiers.as_ref().map_or((true, true), |it| (it.disk, it.redis));
        quote! {
            || #krate::call::Settings {
                ttl: #ttl,
                stale: #stale,
                stale_if_error: #stale_if_error,
                schema: #schema,
                disk: #disk,
                redis: #redis,
            }
        }
    }

    /// Whether results only stay in memory.
    fn in_memory(&self, cache: &Cache) -> bool {
        let listed = cache.tiers.as_ref().is_some_and(|tiers| !tiers.disk && !tiers.redis);
        listed || !self.function.is_async()
    }

    fn cached(&self, cache: &Cache) -> TokenStream {
        let krate = self.options.krate();
        let (site, kind, demands) = (self.site(), self.kind(), self.demands());
        let borrowed = self.function.handle.as_ref().map(Handle::borrowed);
        let (output, fault) = (self.function.named_output(), self.fault());
        let settings = self.settings(cache);
        let key = self.key();
        let tags = self.tags();
        let raise = if self.is_faulty() { quote!(raise) } else { quote!(never) };
        let tiers = if self.in_memory(cache) { quote!(InMemory) } else { quote!(Tiered) };
        let marker = quote!(::core::marker::PhantomData::<fn() -> #output>);
        let prelude = quote_spanned! {mixed()=>
            #demands
            #site
            #kind
            let settings: fn() -> #krate::call::Settings = #settings;
        };
        let wait = if self.function.is_async() { quote!(.await) } else { TokenStream::new() };
        let load = self.at_output(if self.function.is_async() { "load" } else { "load_sync" });
        let make = if self.function.is_async() {
            let pipeline = self.pipeline();
            quote_spanned! {mixed()=>
                {
                    let within: #krate::UltraPerf = ::core::clone::Clone::clone(&handle);
                    move || async move {
                        let handle: &#krate::UltraPerf = &within;
                        let tags = #tags;
                        let outcome: ::core::result::Result<#output, #fault> = #pipeline.await;
                        #krate::call::Made { tags, outcome }
                    }
                }
            }
        } else {
            let run = self.sync_pipeline();
            quote_spanned! {mixed()=>
                {
                    let within: #krate::UltraPerf = ::core::clone::Clone::clone(&handle);
                    move || {
                        let handle: &#krate::UltraPerf = &within;
                        let _ = handle;
                        let tags = #tags;
                        let outcome: ::core::result::Result<#output, #fault> = #run;
                        #krate::call::Made { tags, outcome }
                    }
                }
            }
        };
        let share = quote_spanned! {mixed()=>
            let share = {
                #[allow(unused_imports)]
                use #krate::call::share::{Shared as _, Unshared as _};
                (&#krate::call::passed(&kind, #marker)).share()
            };
        };
        let terms = quote_spanned! {mixed()=>
            #krate::call::Load {
                site,
                settings,
                tiers: #krate::call::#tiers,
                kind,
                key,
                share,
                raise: #krate::call::#raise,
            }
        };
        if cache.stale.is_some() {
            return quote_spanned! {mixed()=>
                #prelude
                let (handle, key, stale) = {
                    let perf: &#krate::UltraPerf = #borrowed;
                    let key = #key;
                    let found = #krate::call::look_up(perf, site, &kind, #marker, &key);
                    let stale = match found {
                        ::core::option::Option::Some(#krate::call::Hit { value, stale: false }) => {
                            return #krate::call::Kind::<#output>::kept(&kind, value);
                        }
                        ::core::option::Option::Some(#krate::call::Hit { value, stale: true }) => {
                            ::core::option::Option::Some(value)
                        }
                        ::core::option::Option::None => ::core::option::Option::None,
                    };
                    (::core::clone::Clone::clone(perf), key, stale)
                };
                #share
                let make = #make;
                let terms = #terms;
                match stale {
                    ::core::option::Option::Some(value) => {
                        #krate::call::refresh(&handle, terms, make);
                        #krate::call::Kind::<#output>::kept(&kind, value)
                    }
                    ::core::option::Option::None => {
                        #load::<#output, _, _, _, _, _>(handle, terms, make) #wait
                    }
                }
            };
        }
        let generics = if self.function.is_async() {
            quote!(::<#output, _, _, _, _, _>)
        } else {
            quote!(::<#output, _, _, _, _>)
        };
        quote_spanned! {mixed()=>
            #prelude
            let (handle, key) = {
                let perf: &#krate::UltraPerf = #borrowed;
                let key = #key;
                let found = #krate::call::find(perf, site, &kind, #marker, &key);
                if let ::core::option::Option::Some(value) = found {
                    return #krate::call::Kind::<#output>::kept(&kind, value);
                }
                (::core::clone::Clone::clone(perf), key)
            };
            #share
            let make = #make;
            #load #generics(handle, #terms, make) #wait
        }
    }

    /// A hidden function beside a plain one, through which `cache_invalidate(of = ..)` finds its cache.
    fn companion(&self, cache: &Cache) -> TokenStream {
        if !self.function.is_plain() {
            return TokenStream::new();
        }
        let krate = self.options.krate();
        let name = companion(&self.function.signature.ident);
        let visibility = &self.function.visibility;
        let cfgs = conditions(&self.function.attributes);
        let (identity, instance) = (self.identity(), self.function.instance(&krate));
        let (settings, output) = (self.settings(cache), self.function.named_output());
        let (kind, opening) = (self.kind(), self.at_output("opening"));
        let tiers = if self.in_memory(cache) { quote!(InMemory) } else { quote!(Tiered) };
        quote_spanned! {mixed()=>
            #(#cfgs)*
            #[doc(hidden)]
            #[allow(dead_code, non_snake_case, clippy::all)]
            #visibility fn #name() -> #krate::call::Target {
                #krate::call::Target::new(#identity, #instance, |perf, target| {
                    #kind
                    #opening(
                        perf,
                        target,
                        #settings,
                        #krate::call::#tiers,
                        kind,
                        ::core::marker::PhantomData::<fn() -> #output>,
                    )
                })
            }
        }
    }
}

/// Locals of what is generated resolve where the macro is defined, not where it is used.
pub(crate) fn mixed() -> proc_macro2::Span {
    proc_macro2::Span::mixed_site()
}

/// The path and the name of a function, as `Identity`.
pub(crate) fn identity(options: &Options, function: &Function) -> TokenStream {
    let krate = options.krate();
    let path = function.signature.ident.to_string();
    let name = match &options.name {
        Some(name) => quote!(::core::option::Option::Some(#name)),
        None => quote!(::core::option::Option::None),
    };
    quote! {
        #krate::call::Identity::new(
            ::core::concat!(::core::module_path!(), "::", #path),
            (::core::line!(), ::core::column!()),
            #name,
        )
    }
}

/// `let site = ..;`: which function this is, and which instance of it.
pub(crate) fn site(options: &Options, function: &Function) -> TokenStream {
    let krate = options.krate();
    let (identity, instance) = (identity(options, function), function.instance(&krate));
    quote_spanned! {mixed()=>
        let site = {
            static SITE: #krate::call::Site = #krate::call::Site::new(#identity);
            #krate::call::Call::new(&SITE, #instance)
        };
    }
}

/// `let kind = ..;`: how a result is split into what is kept and what is not.
pub(crate) fn kind(options: &Options, function: &Function) -> TokenStream {
    let krate = options.krate();
    let output = &function.output;
    if impl_trait_in(output).is_some() {
        return quote_spanned!(mixed()=> let kind = #krate::call::Value;);
    }
    let whole = options.cache.as_ref().and_then(|cache| {
        let (name, (span, ttl)) = match (&cache.errors, &cache.none) {
            (Some(errors), _) => (format_ident!("ErrorsToo"), errors),
            (None, Some(none)) => (format_ident!("NoneToo"), none),
            (None, None) => return None,
        };
        let ttl = match ttl {
            Some(ttl) => {
                let ttl = ttl.tokens();
                quote!(::core::option::Option::Some(#ttl))
            }
            None => quote!(::core::option::Option::None),
        };
        Some(quote_spanned! {span.resolved_at(mixed())=>
            let kind = #krate::call::demand_kind::<_, #output>(#krate::call::#name { ttl: #ttl });
        })
    });
    whole.unwrap_or_else(|| {
        quote_spanned! {mixed()=>
            let kind = {
                #[allow(unused_imports)]
                use #krate::call::kind::{ViaOption as _, ViaResult as _, ViaValue as _};
                (&&#krate::call::Probe::<#output>::new()).kind()
            };
        }
    })
}

/// The tags as a list of `Tag`.
pub(crate) fn tags(options: &Options) -> TokenStream {
    let krate = options.krate();
    let tags = options.tags.iter().map(|tag| match tag {
        Tag::Text(text) if text.value().contains(['{', '}']) => {
            quote_spanned!(text.span()=> #krate::call::tag(::std::format!(#text)))
        }
        Tag::Text(text) => quote_spanned!(text.span()=> #krate::call::tag(#text)),
        Tag::Expression(expr) => quote_spanned!(expr.span()=> #krate::call::tag(#expr)),
    });
    quote!(::std::vec![#(#tags),*])
}
