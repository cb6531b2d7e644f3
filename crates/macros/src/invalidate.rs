//! `#[cache_invalidate]`: the body runs, and what it has made wrong is forgotten.
//!
//! Keys and tags are made of the arguments before the body runs, since it may take them along. A call that
//! returned `Err` has changed nothing; one that was dropped or that panicked may have, so it counts as one
//! that did.

use proc_macro2::{Ident, TokenStream};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;

use crate::call::{kind, mixed, tags};
use crate::function::{Function, Handle, companion, unchanged};
use crate::options::{Attribute, Options, Problems};

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut problems = Problems::default();
    let attribute = Attribute::Invalidate;
    let options = Options::read(attribute, arguments, &mut problems);
    let function =
        Function::read(item.clone(), attribute.name(), options.perf.as_ref(), &mut problems);
    if let Some(function) = &function {
        check(function, &options, &mut problems);
    }
    match (problems.finish(), function) {
        (Ok(()), Some(function)) => tokens(&function, &options),
        (Err(errors), Some(_)) => unchanged(&item, &errors),
        (Err(errors), None) => errors.to_compile_error(),
        (Ok(()), None) => TokenStream::new(),
    }
}

fn check(function: &Function, options: &Options, problems: &mut Problems) {
    let named = !options.of.is_empty() || options.name.is_some();
    let name = function.signature.ident.span();
    if options.key.is_none() && options.tags.is_empty() && options.all.is_none() {
        let message = "nothing to invalidate: say `tags = [..]`, `key = ..` or `all`";
        problems.at(name, message);
    }
    if !named {
        let ask = "needs a cache: say whose with `of = a_function` or `name = \"..\"`";
        if let Some(key) = &options.key {
            problems.at(key.span(), format!("`key` {ask}"));
        }
        if let Some(span) = options.all {
            problems.at(span, format!("`all` {ask}"));
        }
    }
    if let (Some(span), true) = (options.all, options.key.is_some() || !options.tags.is_empty()) {
        problems.at(span, "`all` leaves nothing for `key` and `tags`: take them out");
    }
}

fn tokens(function: &Function, options: &Options) -> TokenStream {
    let krate = options.krate();
    let body = &function.body;
    let output = function.named_output();
    let borrowed = function.handle.as_ref().map(Handle::borrowed);
    let (tags, kind, mutable) = (tags(options), kind(options, function), function.mutable_again());
    let targets = targets(options);
    let key = match &options.key {
        Some(key) => {
            // The user's may be called like ours.
            let made = Ident::new("key", mixed());
            quote_spanned! {key.span()=>
                ::core::option::Option::Some({
                    let mut #made = #krate::call::CallKeyBuf::new();
                    #made.push(&(#key));
                    #made
                })
            }
        }
        None => quote!(::core::option::Option::None),
    };
    let all = options.all.is_some();
    let order = quote_spanned! {mixed()=>
        #kind
        let invalidation = {
            let perf: &#krate::UltraPerf = #borrowed;
            #krate::call::Invalidation::new(perf, #targets, #key, #tags, #all)
        };
    };
    let run = if function.is_async() {
        quote_spanned! {mixed()=>
            #order
            let returned = #krate::call::typed::<#output, _>(async move { #mutable #body }).await;
            if #krate::call::Kind::<#output>::failed(&kind, &returned) {
                invalidation.cancel();
            } else {
                invalidation.run().await;
            }
            returned
        }
    } else {
        quote_spanned! {mixed()=>
            #order
            let returned = #krate::call::once(move || -> #output { #mutable #body });
            if #krate::call::Kind::<#output>::failed(&kind, &returned) {
                invalidation.cancel();
            } else {
                invalidation.run_now();
            }
            returned
        }
    };
    function.with_body(&run)
}

fn targets(options: &Options) -> TokenStream {
    let krate = options.krate();
    let of = options.of.iter().map(|path| {
        let mut path = path.clone();
        if let Some(last) = path.segments.last_mut() {
            last.ident = companion(&last.ident);
        }
        quote_spanned!(path.span()=> #path())
    });
    let named = options.name.iter().map(|name| quote!(#krate::call::Target::named(#name)));
    quote!(::std::vec![#(#of,)* #(#named,)*])
}
