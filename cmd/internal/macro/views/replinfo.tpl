# {host}: progress of fetch and replay
%unless{%or{%work-reached{}}{%is-primary{}}{%not{%is-attach{}}}}{\
	\     replaying: %progress{20}\
	\  %sprintf{%.2f}{%work-percent{}}\%\
	\  %human-pair{%work-pos{}}{%work-size{}}\
	\  logs: [%replay-lognr{}\
	%if{%!={%fetch-lognr{}}{%replay-lognr{}}}{::%fetch-lognr{}}\
	%if{%!={%work-lognr{}}{%fetch-lognr{}}}{..%work-lognr{}}]\n\
	%fetch-line{}\
	%replay-line{}\
}
