# syntax=docker/dockerfile:1

# One static program in an image without a shell, run by nobody in particular.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH
ARG VERSION=devel
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/keyledger ./cmd/keyledger \
    && mkdir -m 0700 /out/data

# Certificates, a passwd with "nonroot", and nothing else. There is no Postgres in
# it, so DATABASE_URL is needed; without NATS_URL the embedded NATS runs.
FROM gcr.io/distroless/static-debian12:nonroot
LABEL org.opencontainers.image.title="Keyledger" \
      org.opencontainers.image.description="An event-sourced API-key service" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/keyledger /usr/local/bin/keyledger
COPY --from=build --chown=nonroot:nonroot /out/data /data
ENV KEYLEDGER_DATA_DIR=/data \
    KEYLEDGER_LISTEN=0.0.0.0:8080
VOLUME /data
EXPOSE 8080
USER nonroot
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/usr/local/bin/keyledger", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/keyledger"]
CMD ["serve"]
