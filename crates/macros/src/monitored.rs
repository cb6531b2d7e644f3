//! `#[monitored]`: calls, errors and times of a function, and nothing else.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;

use crate::call::{kind, mixed, site};
use crate::function::{Function, Handle, unchanged};
use crate::options::{Attribute, Options, Problems};

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut problems = Problems::default();
    let attribute = Attribute::Monitored;
    let options = Options::read(attribute, arguments, &mut problems);
    let function =
        Function::read(item.clone(), attribute.name(), options.perf.as_ref(), &mut problems);
    for (at, (label, _)) in options.labels.iter().enumerate() {
        let name = label.unraw().to_string();
        if ["function", "le", "quantile"].contains(&name.as_str()) || name.starts_with("__") {
            problems.at(label.span(), format!("`{name}` is a label of ours: take another name"));
        } else if options.labels[..at].iter().any(|(other, _)| other == label) {
            problems.at(label.span(), format!("`{name}` is given twice"));
        }
    }
    match (problems.finish(), function) {
        (Ok(()), Some(function)) => tokens(&function, &options),
        (Err(errors), Some(_)) => unchanged(&item, &errors),
        (Err(errors), None) => errors.to_compile_error(),
        (Ok(()), None) => TokenStream::new(),
    }
}

fn tokens(function: &Function, options: &Options) -> TokenStream {
    let krate = options.krate();
    let body = &function.body;
    let output = function.named_output();
    let (site, kind, mutable) =
        (site(options, function), kind(options, function), function.mutable_again());
    let labels = options.labels.iter().map(|(name, value)| {
        let name = name.unraw().to_string();
        quote!((#name, #value))
    });
    let perf = perf(function, &krate);
    let head = quote_spanned! {mixed()=>
        #site
        #kind
        #perf
        let meter = #krate::call::meter_with(perf, site, &[#(#labels),*]);
    };
    let run = if function.is_async() {
        quote_spanned! {mixed()=>
            #head
            #krate::call::measured::<#output, _, _, _>(
                meter,
                kind,
                #krate::call::only::<#output, ::core::convert::Infallible, _>(
                    async move { #mutable #body }
                ),
            )
            .await
        }
    } else {
        quote_spanned! {mixed()=>
            #head
            #krate::call::measured_sync::<#output, _, _, _>(
                meter,
                kind,
                move || #krate::call::only_sync::<#output, ::core::convert::Infallible, _>(
                    move || -> #output { #mutable #body }
                ),
            )
        }
    };
    function.with_body(&run)
}

/// `let perf = ..;`, a clone where the handle may be borrowed from what moves into the body.
fn perf(function: &Function, krate: &syn::Path) -> TokenStream {
    let Some(handle) = &function.handle else { return TokenStream::new() };
    let borrowed = handle.borrowed();
    let stays = match handle {
        Handle::Parameter { by_reference, .. } => *by_reference,
        Handle::Expression(_) => false,
    };
    if stays {
        return quote_spanned!(mixed()=> let perf: &#krate::UltraPerf = #borrowed;);
    }
    quote_spanned! {mixed()=>
        let perf: &#krate::UltraPerf =
            &::core::clone::Clone::clone({ let perf: &#krate::UltraPerf = #borrowed; perf });
    }
}
