# Two static binaries and nothing else: the server (by its name as a plugin of kubectl, too), and the launcher that it brings into tenants' pods. tests/image/build builds this and checks what comes out.

# For a release, pin what the tag stood for: --build-arg RUST_IMAGE=docker.io/library/rust:1.95-slim-bookworm@sha256:...
ARG RUST_IMAGE=docker.io/library/rust:1.95-slim-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /build

# glibc linked in, and no path of this stage in the binary: the same sources make the same binary everywhere. With an
# explicit --target below, these flags are for the binary alone; procedural macros cannot be static. Places that the loader has to set
# are packed (RELR): half a megabyte.
ENV CARGO_HOME=/usr/local/cargo \
    CARGO_INCREMENTAL=0 \
    RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs --remap-path-prefix=/build=. --remap-path-prefix=/usr/local/cargo=cargo"

# The dependencies, which seldom change, in a layer of their own. The test and benchmark targets are taken out, since
# their sources are not here and cargo would miss them.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[\(bench\|test\)\]\]/,/^$/d' Cargo.toml \
 && mkdir src \
 && touch src/lib.rs \
 && mkdir -p src/bin/launcher \
 && echo 'fn main() {}' >src/main.rs \
 && cp src/main.rs src/bin/launcher/ \
 && cargo build --release --locked --bins --target "$(rustc --print host-tuple)"

COPY src src
ARG SOURCE_DATE_EPOCH=0
# Cargo goes by the time of a file, and the empty ones above may be newer than what was copied over them.
RUN touch src/lib.rs src/main.rs src/bin/launcher/main.rs \
 && cargo build --release --locked --bins --target "$(rustc --print host-tuple)" \
 && mkdir /image \
 && for program in tenancy-fixer launcher; do mv "target/$(rustc --print host-tuple)/release/$program" /image/; done \
 && ln -s tenancy-fixer /image/kubectl-tenancy_fixer \
 && touch --no-dereference --date="@$SOURCE_DATE_EPOCH" /image/* /image

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tenancy-fixer" \
      org.opencontainers.image.description="Closes the holes between Kubeflow's tenants and its shared services" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image/ /
# By number: there is no /etc/passwd, and Kubernetes' runAsNonRoot wants to see that it is not 0.
USER 65532:65532
EXPOSE 8443 8080
ENTRYPOINT ["/tenancy-fixer"]
