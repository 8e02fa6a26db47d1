package testbed

import (
	"testing"
	"time"
)

// The rest of what the clients can do is shown by the end-to-end tests, where
// they have the time for it.
func TestMovieThroughGst(t *testing.T) {
	t.Parallel()
	movie := FileFrames(t.Context(), t, Movie(t, "h264-bframes-aac.mp4"), 0)
	if len(movie.Video) != 300 || len(movie.Audio) != 518 {
		t.Fatalf("the movie has %d video and %d audio frames", len(movie.Video), len(movie.Audio))
	}
	up := StartGst(t, GstOptions{Movies: []string{Movie(t, "h264-bframes-aac.mp4")}, Auth: DigestMD5})
	got := FFmpegFrames(t.Context(), t, up.URL("/h264-bframes-aac.mp4"), UDP, 2*time.Second)
	if err := CompareLoop(movie, got, 45); err != nil {
		t.Error(err)
	}
}

func TestLiveThroughGortsplib(t *testing.T) {
	t.Parallel()
	up := StartGortsplib(t, GortsplibOptions{Auth: Basic})
	publisher := PublishFile(t, up.URL("/live"), Movie(t, "h264-aac.mp4"), TCP)
	up.AwaitPublished(t, "/live")
	play := func() Frames { return GstFrames(t.Context(), t, up.URL("/live"), TCP, 3*time.Second) }
	plays := Together(play, play)
	if err := CompareLive(plays[0], plays[1], 45); err != nil {
		t.Error(err)
	}
	// A picture is the same bytes to ffmpeg and GStreamer; sound is rounded differently.
	movie := FileFrames(t.Context(), t, Movie(t, "h264-aac.mp4"), 0)
	if err := CompareLoop(Frames{Video: movie.Video}, Frames{Video: plays[0].Video}, 45); err != nil {
		t.Error(err)
	}
	publisher.Stop()
	up.AwaitSessions(t, 0)
}
