/* gstsrv: the gst-rtsp-server upstream of the tests.
 *
 *   gstsrv [options] [MOVIE...]
 *
 *   /NAME           MOVIE's base name, on demand: a pipeline for each client, seekable
 *   /shared/NAME    the same movie, one pipeline shared by all its clients
 *   /live           H.264 + PCMA made up on the spot, shared; no two frames alike
 *   /record         takes ANNOUNCE/RECORD of H.264 [+ AAC]; --record keeps the video
 *
 * The server says "READY <port>" on stdout once it listens, and ends when its
 * stdin does, so it cannot outlive the test that started it.
 */
#include <gst/gst.h>
#include <gst/pbutils/pbutils.h>
#include <gst/rtsp-server/rtsp-server.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define USER_ROLE "user"
#define ANYBODY_ROLE "anybody"

static struct {
  char *host, *auth, *user, *pass, *cert, *key, *record;
  int port, threads, timeout_s;
  gboolean multicast;
  char **movies;
} opt = { .threads = 4 };

static const GOptionEntry options[] = {
  { "host", 0, 0, G_OPTION_ARG_STRING, &opt.host, "address to listen on (127.0.0.1)", "ADDR" },
  { "port", 0, 0, G_OPTION_ARG_INT, &opt.port, "port to listen on (0: any)", "PORT" },
  { "auth", 0, 0, G_OPTION_ARG_STRING, &opt.auth, "ask for credentials", "basic|digest" },
  { "user", 0, 0, G_OPTION_ARG_STRING, &opt.user, "the name that opens the door", "NAME" },
  { "pass", 0, 0, G_OPTION_ARG_STRING, &opt.pass, "and its password", "PASSWORD" },
  { "cert", 0, 0, G_OPTION_ARG_FILENAME, &opt.cert, "TLS certificate (PEM)", "FILE" },
  { "key", 0, 0, G_OPTION_ARG_FILENAME, &opt.key, "TLS key (PEM)", "FILE" },
  { "record", 0, 0, G_OPTION_ARG_FILENAME, &opt.record, "keep what /record receives (H.264 byte stream)", "FILE" },
  { "threads", 0, 0, G_OPTION_ARG_INT, &opt.threads, "client threads (4)", "N" },
  { "session-timeout", 0, 0, G_OPTION_ARG_INT, &opt.timeout_s, "seconds a session lives without a sign of life", "S" },
  { "multicast", 0, 0, G_OPTION_ARG_NONE, &opt.multicast, "offer multicast too", NULL },
  { G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &opt.movies, NULL, "MOVIE..." },
  { NULL }
};

static void die(const char *what, GError *err) {
  g_printerr("gstsrv: %s%s%s\n", what, err ? ": " : "", err ? err->message : "");
  exit(1);
}

/* payloader names the elements that put a stream of these caps into RTP, or NULL. */
static const char *payloader(GstDiscovererStreamInfo *info) {
  static const struct { const char *type, *field; int version; const char *chain; } known[] = {
    { "video/x-h264", NULL, 0, "h264parse ! rtph264pay" },
    { "video/x-h265", NULL, 0, "h265parse ! rtph265pay" },
    { "video/mpeg", "mpegversion", 4, "mpeg4videoparse ! rtpmp4vpay" },
    { "audio/mpeg", "mpegversion", 4, "aacparse ! rtpmp4gpay" },
    { "audio/mpeg", "mpegversion", 1, "mpegaudioparse ! rtpmpapay" },
  };
  GstCaps *caps = gst_discoverer_stream_info_get_caps(info);
  const char *found = NULL;
  if (caps) {
    GstStructure *s = gst_caps_get_structure(caps, 0);
    for (guint i = 0; !found && i < G_N_ELEMENTS(known); i++) {
      int version = 0;
      if (known[i].field) gst_structure_get_int(s, known[i].field, &version);
      if (gst_structure_has_name(s, known[i].type) && version == known[i].version) found = known[i].chain;
    }
    gst_caps_unref(caps);
  }
  return found;
}

/* branch appends the chain of the first stream of a kind, if the movie has one. */
static void branch(GString *launch, GList *streams, const char *pad, int *n) {
  const char *chain = streams ? payloader(streams->data) : NULL;
  if (chain) {
    g_string_append_printf(launch, "d.%s ! queue ! %s name=pay%d pt=%d ", pad, chain, *n, 96 + *n);
    (*n)++;
  }
  gst_discoverer_stream_info_list_free(streams);
}

/* movie_pipeline returns the launch line that plays a movie's first video and first audio. */
static char *movie_pipeline(const char *path) {
  GError *err = NULL;
  char *absolute = g_canonicalize_filename(path, NULL);
  char *uri = gst_filename_to_uri(absolute, &err);
  if (!uri) die(path, err);
  GstDiscoverer *d = gst_discoverer_new(10 * GST_SECOND, &err);
  if (!d) die("discoverer", err);
  GstDiscovererInfo *info = gst_discoverer_discover_uri(d, uri, &err);
  if (!info || err) die(path, err);
  GString *launch = g_string_new(NULL);
  g_string_append_printf(launch, "( filesrc location=\"%s\" ! qtdemux name=d ", absolute);
  int n = 0;
  branch(launch, gst_discoverer_info_get_video_streams(info), "video_0", &n);
  branch(launch, gst_discoverer_info_get_audio_streams(info), "audio_0", &n);
  if (n == 0) die("nothing in it can be sent", NULL);
  g_string_append(launch, ")");
  gst_discoverer_info_unref(info);
  g_object_unref(d);
  g_free(uri);
  g_free(absolute);
  return g_string_free(launch, FALSE);
}

static GstRTSPMediaFactory *mount(GstRTSPMountPoints *points, const char *path, const char *launch, gboolean shared) {
  GstRTSPMediaFactory *f = gst_rtsp_media_factory_new();
  gst_rtsp_media_factory_set_launch(f, launch);
  gst_rtsp_media_factory_set_shared(f, shared);
  GstRTSPLowerTrans lower = GST_RTSP_LOWER_TRANS_UDP | GST_RTSP_LOWER_TRANS_TCP;
  if (opt.multicast) {
    GstRTSPAddressPool *pool = gst_rtsp_address_pool_new();
    gst_rtsp_address_pool_add_range(pool, "224.3.0.1", "224.3.0.10", 15000, 15020, 1);
    gst_rtsp_media_factory_set_address_pool(f, pool);
    g_object_unref(pool);
    lower |= GST_RTSP_LOWER_TRANS_UDP_MCAST;
  }
  gst_rtsp_media_factory_set_protocols(f, lower);
  if (opt.auth || opt.cert)
    gst_rtsp_media_factory_add_role(f, opt.auth ? USER_ROLE : ANYBODY_ROLE,
        GST_RTSP_PERM_MEDIA_FACTORY_ACCESS, G_TYPE_BOOLEAN, TRUE,
        GST_RTSP_PERM_MEDIA_FACTORY_CONSTRUCT, G_TYPE_BOOLEAN, TRUE, NULL);
  gst_rtsp_mount_points_add_factory(points, path, f);
  return f;
}

static void mount_all(GstRTSPServer *server) {
  GstRTSPMountPoints *points = gst_rtsp_server_get_mount_points(server);
  for (char **m = opt.movies; m && *m; m++) {
    char *name = g_path_get_basename(*m), *launch = movie_pipeline(*m);
    char *alone = g_strconcat("/", name, NULL), *shared = g_strconcat("/shared/", name, NULL);
    mount(points, alone, launch, FALSE);
    mount(points, shared, launch, TRUE);
    g_free(alone), g_free(shared), g_free(launch), g_free(name);
  }
  mount(points, "/live",
      "( videotestsrc is-live=1 pattern=zone-plate kx2=20 ky2=20 kt=3 ! video/x-raw,format=I420,width=320,height=180,framerate=25/1 "
      "! x264enc tune=zerolatency speed-preset=ultrafast bitrate=500 key-int-max=25 ! rtph264pay name=pay0 pt=96 config-interval=-1 "
      "audiotestsrc is-live=1 wave=white-noise volume=0.1 samplesperbuffer=160 ! audio/x-raw,rate=8000,channels=1 "
      "! alawenc ! rtppcmapay name=pay1 pt=8 )", TRUE);
  char *sink = opt.record ? g_strdup_printf("filesink async=false location=\"%s\"", opt.record) : g_strdup("fakesink async=false");
  char *launch = g_strdup_printf("( rtph264depay name=depay0 ! h264parse ! video/x-h264,stream-format=byte-stream,alignment=au ! %s "
      "rtpmp4gdepay name=depay1 ! fakesink async=false )", sink);
  gst_rtsp_media_factory_set_transport_mode(mount(points, "/record", launch, FALSE), GST_RTSP_TRANSPORT_MODE_RECORD);
  g_free(launch), g_free(sink);
  g_object_unref(points);
}

/* protect asks for credentials, wraps the server in TLS, or both. */
static void protect(GstRTSPServer *server) {
  GError *err = NULL;
  GstRTSPAuth *auth = gst_rtsp_auth_new();
  GstRTSPToken *token = gst_rtsp_token_new(GST_RTSP_TOKEN_MEDIA_FACTORY_ROLE, G_TYPE_STRING, opt.auth ? USER_ROLE : ANYBODY_ROLE, NULL);
  if (!opt.auth) {
    gst_rtsp_auth_set_default_token(auth, token);
  } else if (!strcmp(opt.auth, "digest")) {
    gst_rtsp_auth_set_supported_methods(auth, GST_RTSP_AUTH_DIGEST);
    gst_rtsp_auth_add_digest(auth, opt.user, opt.pass, token);
  } else if (!strcmp(opt.auth, "basic")) {
    char *basic = gst_rtsp_auth_make_basic(opt.user, opt.pass);
    gst_rtsp_auth_add_basic(auth, basic, token);
    g_free(basic);
  } else {
    die("--auth must be basic or digest", NULL);
  }
  gst_rtsp_token_unref(token);
  if (opt.cert) {
    GTlsCertificate *cert = g_tls_certificate_new_from_files(opt.cert, opt.key ? opt.key : opt.cert, &err);
    if (!cert) die("certificate", err);
    gst_rtsp_auth_set_tls_certificate(auth, cert);
    g_object_unref(cert);
  }
  gst_rtsp_server_set_auth(server, auth);
  g_object_unref(auth);
}

static gboolean expire(gpointer server) {
  GstRTSPSessionPool *pool = gst_rtsp_server_get_session_pool(server);
  gst_rtsp_session_pool_cleanup(pool);
  g_object_unref(pool);
  return G_SOURCE_CONTINUE;
}

static void session_born(GstRTSPClient *client, GstRTSPSession *session, gpointer unused) {
  gst_rtsp_session_set_timeout(session, opt.timeout_s);
}

static void client_born(GstRTSPServer *server, GstRTSPClient *client, gpointer unused) {
  g_signal_connect(client, "new-session", G_CALLBACK(session_born), NULL);
}

static gboolean stdin_ended(GIOChannel *in, GIOCondition why, gpointer loop) {
  char drain[256];
  if (read(STDIN_FILENO, drain, sizeof drain) > 0) return G_SOURCE_CONTINUE;
  g_main_loop_quit(loop);
  return G_SOURCE_REMOVE;
}

int main(int argc, char **argv) {
  GError *err = NULL;
  GOptionContext *context = g_option_context_new(NULL);
  g_option_context_add_main_entries(context, options, NULL);
  g_option_context_add_group(context, gst_init_get_option_group());
  if (!g_option_context_parse(context, &argc, &argv, &err)) die("arguments", err);
  if (opt.auth && (!opt.user || !opt.pass)) die("--auth needs --user and --pass", NULL);

  GMainLoop *loop = g_main_loop_new(NULL, FALSE);
  GstRTSPServer *server = gst_rtsp_server_new();
  char *service = g_strdup_printf("%d", opt.port);
  gst_rtsp_server_set_address(server, opt.host ? opt.host : "127.0.0.1");
  gst_rtsp_server_set_service(server, service);
  // By default five: clients beyond that try again after a second, or after three.
  gst_rtsp_server_set_backlog(server, 128);
  /* With one thread a single stuck seek would hang every client. */
  GstRTSPThreadPool *threads = gst_rtsp_server_get_thread_pool(server);
  gst_rtsp_thread_pool_set_max_threads(threads, opt.threads);
  g_object_unref(threads);
  if (opt.auth || opt.cert) protect(server);
  if (opt.timeout_s) g_signal_connect(server, "client-connected", G_CALLBACK(client_born), NULL);
  mount_all(server);
  if (!gst_rtsp_server_attach(server, NULL)) die("cannot listen", NULL);
  g_timeout_add_seconds(1, expire, server);
  g_io_add_watch(g_io_channel_unix_new(STDIN_FILENO), G_IO_IN | G_IO_HUP | G_IO_ERR, stdin_ended, loop);
  printf("READY %d\n", gst_rtsp_server_get_bound_port(server));
  fflush(stdout);
  g_main_loop_run(loop);
  return 0;
}
