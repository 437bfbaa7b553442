# The image has the binary and the CA certificates, and nothing else: no shell,
# no package, no user but a number. Run it with a read-only root; see
# docs/operating/install.md.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download && go mod verify
COPY . .
ARG VERSION=devel
RUN make build VERSION="${VERSION}"

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/dist/imapgate /imapgate
USER 65532:65532
EXPOSE 993 143 9143
ENTRYPOINT ["/imapgate"]
CMD ["serve", "--config", "/etc/imapgate.yaml"]
