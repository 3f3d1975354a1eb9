# The bridge: one static binary, no shell, not root.
#
#   docker build -t backstory .
#   docker run -v ./configs:/etc/backstory:ro -v backstory-state:/var/lib/backstory \
#     -e BACKSTORY_SOURCE_DSN=postgres://… -e BACKSTORY_KAFKA_BROKERS=… -p 127.0.0.1:8642:8642 backstory
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# With .git, so that "backstory version" names the revision.
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /out/backstory ./cmd/backstory && mkdir /out/state

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/backstory /usr/local/bin/backstory
# A named volume takes the owner of the directory that it is mounted on.
COPY --from=build --chown=nonroot:nonroot /out/state /var/lib/backstory
ENV BACKSTORY_STATE_DIR=/var/lib/backstory \
    BACKSTORY_HTTP_LISTEN=0.0.0.0:8642
VOLUME /var/lib/backstory
EXPOSE 8642
# Whether the process answers; whether changes flow is /readyz.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s \
    CMD ["/usr/local/bin/backstory", "status", "--json"]
# SIGTERM ends it in order: the batch under way is published and confirmed.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/backstory"]
CMD ["run", "--config", "/etc/backstory/backstory.yaml"]
